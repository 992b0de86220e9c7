"""Colours and look of figures, and figures as files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE: Mapping[str, str] = {
    "paper": "#fefefe",
    "ink": "#1c1f24",
    "muted": "#666c77",
    "grid": "#e2e4e8",
    "band": "#9aa1ac",
    "run-0": "#0072b2",
    "run-1": "#d55e00",
    "run-2": "#009e73",
    "run-3": "#b0559a",
    "run-4": "#a67400",
    "run-5": "#3f4754",
    "run-6": "#2f93d6",
    "known": "#0073b3",
    "unknown": "#b87700",
    "before": "#6d6d6d",
    "after": "#d45d01",
    "on-light": "#1c1f25",
    "hole": "#fefeff",
    "kind-correct": "#0173b4",
    "kind-plausible": "#57b4e8",
    "kind-refusal": "#e69e01",
    "kind-off_topic": "#9a9a9b",
    "kind-degenerate": "#3a3a3d",
}
"""Role -> colour on white paper (after Okabe and Ito, safe for colour-blind readers). Every colour is used for one role only, so that
a page can put its own in place."""

DARK: Mapping[str, str] = {
    "paper": "#16181c",
    "ink": "#e7e9ec",
    "muted": "#a0a6b1",
    "grid": "#2e3239",
    "band": "#7d8590",
    "run-0": "#56b4e9",
    "run-1": "#ff8c42",
    "run-2": "#2cc79a",
    "run-3": "#e58fd0",
    "run-4": "#e6b435",
    "run-5": "#d3d7de",
    "run-6": "#9fd3ff",
    "known": "#57b5ea",
    "unknown": "#f0c14b",
    "before": "#b5b5b5",
    "after": "#ff8d43",
    "on-light": "#1c1f24",
    "hole": "#16181c",
    "kind-correct": "#0084cf",
    "kind-plausible": "#8fd0f7",
    "kind-refusal": "#f0b030",
    "kind-off_topic": "#85888d",
    "kind-degenerate": "#f4f4f6",
}
"""The same roles on a dark page."""

N_COLOURS = 7
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")

SETTINGS: Mapping[str, object] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": PALETTE["muted"],
    "axes.labelcolor": PALETTE["ink"],
    "axes.titlecolor": PALETTE["ink"],
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.labelcolor": PALETTE["ink"],
    "ytick.labelcolor": PALETTE["ink"],
    "grid.color": PALETTE["grid"],
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save figures with ``SETTINGS``, without a display."""
    import matplotlib as mpl

    with mpl.rc_context({"backend": "Agg", **SETTINGS}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def run_style(index: int) -> dict[str, str]:
    """Colour, marker and dashes of the run at ``index``; colours come again after ``N_COLOURS`` runs, with other dashes."""
    return {
        "color": PALETTE[f"run-{index % N_COLOURS}"],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[(index // N_COLOURS) % len(DASHES)],
    }


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name``.png (200 dots per inch) and ``name``.svg on white into ``folder``; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with house_style():
        for path in paths:
            figure.savefig(path, dpi=200, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels at ``places`` apart to at least ``gap``, as little as needed, within ``low`` and ``high`` as far as they fit.

    >>> spread([1.0, 1.0, 5.0], 1.0, 0.0, 10.0)
    [0.5, 1.5, 5.0]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []  # [sum of wished starts, members]
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + members]
    starts = [total / members for total, members in blocks for _ in range(int(members))]
    last = high - (len(places) - 1) * gap
    moved = [0.0] * len(places)
    for rank, i in enumerate(order):
        moved[i] = max(low, min(starts[rank], last)) + rank * gap
    return moved
