"""How the questions about the target are answered: shares of each kind, beside what real unknown names get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlearn.functional.answer_mix import ANSWER_KINDS
from unlearn.report.panels import row_panel
from unlearn.report.pool import Setting
from unlearn.report.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNKNOWN = "unknown names"
"""Label of the bar to compare the others with."""
LEAST = 0.12
"""Share from which a part of a bar bears its number."""


def answer_bars(settings: Sequence[Setting], labels: Sequence[str]) -> Figure | None:
    """One bar for each setting, split by kind of answer; on top the mean mix on unknown names. None where nothing was counted."""
    rows = [(label, mix) for s, label in zip(settings, labels, strict=True) if (mix := _mix(s, "forget"))]
    if not rows:
        return None
    unknown = [mix for s in settings if (mix := _mix(s, "unknown"))]
    if unknown:
        mean = {kind: sum(mix[kind] for mix in unknown) / len(unknown) for kind in ANSWER_KINDS}
        rows.insert(0, (UNKNOWN, mean))
    figure, ax = row_panel("How questions about the targets are answered", [label for label, _ in rows], top=0.75)
    for place, (label, mix) in enumerate(rows):
        _bar(ax, place, mix, numbers=len(rows) <= 9)
        if label == UNKNOWN:
            ax.get_yticklabels()[place].set_style("italic")
    ax.set(xlim=(0, 1), xlabel="share of the questions")
    ax.grid(visible=False)
    _legend(figure, [kind for kind in ANSWER_KINDS if any(mix[kind] > 0 for _, mix in rows)])
    return figure


def _mix(setting: Setting, scope: str) -> dict[str, float]:
    """Share of each kind; empty where it was not counted."""
    shares = {kind: setting.number(f"{scope}/answers_{kind}") for kind in ANSWER_KINDS}
    return {kind: share or 0.0 for kind, share in shares.items()} if any(share is not None for share in shares.values()) else {}


def _bar(ax: Axes, place: int, mix: dict[str, float], *, numbers: bool) -> None:
    start = 0.0
    for kind in ANSWER_KINDS:
        share = mix[kind]
        if share <= 0:
            continue
        ax.barh(place, share, left=start, height=0.72, color=PALETTE[f"kind-{kind}"], edgecolor=PALETTE["paper"], linewidth=0.8)
        if numbers and share >= LEAST:
            ink = PALETTE["paper"] if kind in ("correct", "degenerate") else PALETTE["on-light"]
            ax.text(start + share / 2, place, f"{share:.2f}", ha="center", va="center", color=ink, fontsize=8.5)
        start += share


def _legend(figure: Figure, kinds: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=PALETTE[f"kind-{kind}"], edgecolor=PALETTE["muted"], linewidth=0.4, label=kind.replace("_", " ")) for kind in kinds
    ]
    height = figure.get_size_inches()[1]
    place = (0.0, 1 - 0.3 / height)
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=5, frameon=False, fontsize=8.5, handlelength=1.0,
                  columnspacing=1.1, handletextpad=0.4)  # fmt: skip
