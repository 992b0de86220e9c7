"""The figures, from the files that are there; the gold model is in every one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cells import FRESH, Cell

from unlearn.functional.judgement import attack_excesses
from unlearn.functional.statistics import bootstrap_interval
from unlearn.report.style import PALETTE, house_style, run_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[Cell, Mapping[str, float]]

RESAMPLES = 2000
GOLD = {"marker": "*", "color": PALETTE["run-2"]}
COLOURS = list(dict.fromkeys(colour for i in range(28) if (colour := run_style(i)["color"]) != GOLD["color"]))
MARKERS = "osD^vP<X>phdH"
"""Colours and markers of the others; each setting has a pair of its own."""


def averaged(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): 95 % bootstrap over cells; the ends are the mean where there is one cell."""
    mean = float(np.mean(values))
    low, high = bootstrap_interval(values, RESAMPLES, seed=0) if len(values) > 1 else (mean, mean)
    return mean, low, high


def recovered(found: Mapping[str, float], name: str) -> float | None:
    """What an attack gets out of the targets at its best setting."""
    return next((found[key] for key in (f"attack/{name}_recovery", f"attack/{name}_accuracy") if key in found), None)


def worst(found: Mapping[str, float]) -> float | None:
    """What the best attack gets out beyond its control; None where nothing was attacked."""
    excesses = [found[f"attack/{name}_excess"] for name in attack_excesses(found)]
    return max(excesses, default=None)


def gold_of(found: Mapping[str, float]) -> dict[str, float]:
    """The gold model's attacks, as far as they stand beside those of a cell."""
    return {key.replace("_gold", ""): value for key, value in found.items() if key.startswith("attack/") and "_gold" in key}


def beside_gold(found: Found) -> dict[Cell, Mapping[str, float]]:
    """The cells with the attacks on the gold model of the same place beside their own: ``attack/<name>_gold``, ``..._gold_control``, ..."""
    return {cell: {**results, **({} if cell.gold == cell else _as_gold(found.get(cell.gold, {})))} for cell, results in found.items()}


def _as_gold(gold: Mapping[str, float]) -> dict[str, float]:
    made = {f"attack/{name}_gold": value for name in attack_excesses(gold) if (value := recovered(gold, name)) is not None}
    parts = ("control", "excess", "excess/ci_low", "excess/ci_high")
    names = [(name, part) for name in attack_excesses(gold) for part in parts if f"attack/{name}_{part}" in gold]
    return made | {f"attack/{name}_gold_{part}": gold[f"attack/{name}_{part}"] for name, part in names}


def draw(found: Found, folder: Path) -> list[Path]:
    """``frontier``, ``attacks`` and ``scale`` as PNG and SVG."""
    from matplotlib.figure import Figure

    paths = []
    with house_style():
        for name, size, panels in (("frontier", (11.6, 4.8), 2), ("attacks", (6.4, 6.0), 1), ("scale", (10.6, 4.2), 2)):
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots(1, panels, squeeze=False)[0]
            {"frontier": frontier, "attacks": attacks, "scale": scale}[name](axes, found)
            paths += save(figure, folder, name)
    return paths


def _settings(found: Found, cells: Sequence[Cell]) -> dict[str, list[Mapping[str, float]]]:
    grouped: dict[str, list[Mapping[str, float]]] = {}
    for cell in cells:
        if cell in found:
            grouped.setdefault(cell.setting, []).append(found[cell])
    return grouped


def _point(ax: Axes, xs: Sequence[float], ys: Sequence[float], label: str, look: Mapping[str, str]) -> None:
    (x, *x_ends), (y, *y_ends) = averaged(xs), averaged(ys)
    ax.plot(x_ends, [y, y], color=look["color"], linewidth=1)
    ax.plot([x, x], y_ends, color=look["color"], linewidth=1)
    ax.plot(x, y, look["marker"], color=look["color"], markersize=10 if look["marker"] == "*" else 6, label=label, linestyle="none")


def _of(found: Found, setting: str) -> list[Mapping[str, float]]:
    """The cells of a setting on fresh worlds."""
    return [results for cell, results in found.items() if cell.setting == setting and cell.place in FRESH]


def frontier(axes: Sequence[Axes], found: Found) -> None:
    """What the best attack brings out, against what is kept of people in no loss and against the cost."""
    x_axes = {
        "retain/accuracy_unseen": "questions about people in no loss\nthat are answered (higher is better)",
        "cost/train_cpu_seconds": "CPU seconds of training (lower is better)",
    }
    there = [cell for cell in found if not cell.setting.startswith(("targets", "large", "sequence"))]
    worlds = {"fresh": [c for c in there if c.place in FRESH], "tuning world": [c for c in there if c.place not in FRESH]}
    groups = [(where, *item) for where, cells in worlds.items() for item in _settings(found, cells).items()]
    for ax, (key, words) in zip(axes, x_axes.items(), strict=True):
        ax.set(
            xlabel=words, ylabel="targets' facts that the best attack\ngets out, beyond its control (lower is better)", ylim=(-0.05, 1.05)
        )
        for i, (where, setting, results) in enumerate(groups):
            pairs = [(r[key], w) for r in results if key in r and (w := worst(r)) is not None]
            if pairs:
                look = GOLD if setting == "gold" else {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
                _point(ax, *zip(*pairs, strict=True), f"{setting}, {where}" + (f" ({len(pairs)})" if len(pairs) > 1 else ""), look)
        beside = [w for r in found.values() if (w := worst(gold_of(r))) is not None]
        if beside:
            label = f"gold model (beside {len(beside)} cells)"
            ax.axhline(float(np.mean(beside)), color=GOLD["color"], linewidth=1, linestyle="--", label=label)
    kept = [r["retain/accuracy_unseen"] for r in found.values() if "retain/accuracy_unseen" in r]
    axes[0].set_xlim(min([0.9, *kept]) - 0.02, 1.02)
    axes[1].set_xlim(left=0.0)
    axes[0].set_title("What is kept, what comes back")
    axes[1].set_title("What it costs")
    both = [ax.get_legend_handles_labels() for ax in axes]
    named = {label: handle for handles, labels in both for handle, label in zip(handles, labels, strict=True)}
    axes[0].get_figure().legend(named.values(), named.keys(), frameon=False, fontsize=8, loc="outside right upper")


def attacks(axes: Sequence[Axes], found: Found) -> None:
    """Every attack on the fresh worlds: targets, control, gold model; mean and interval over cells."""
    (ax,), cells = axes, _of(found, "sae_erase")
    names = sorted(
        {name for r in cells for name in attack_excesses(r)}, key=lambda n: -float(np.mean([recovered(r, n) or 0.0 for r in cells]))
    )
    series = {
        "targets": ("o", PALETTE["run-1"], recovered),
        "control": ("|", PALETTE["muted"], lambda r, name: r.get(f"attack/{name}_control")),
        "gold model, targets": ("*", GOLD["color"], lambda r, name: r.get(f"attack/{name}_gold")),
    }
    for shift, (label, (marker, colour, value)) in enumerate(series.items()):
        for place, name in enumerate(names):
            values = [v for r in cells if (v := value(r, name)) is not None]
            if values:
                mean, low, high = averaged(values)
                y, size = len(names) - place + 0.18 * (1 - shift), 5.5 if marker == "o" else 8
                ax.plot([low, high], [y, y], color=colour, linewidth=1.2)
                ax.plot(mean, y, marker, color=colour, markersize=size, label="" if place else label)
    ax.set_yticks(range(len(names), 0, -1), [name.replace("_", " ") for name in names])
    ax.set(xlim=(-0.02, max(0.5, ax.get_xlim()[1])), xlabel="questions answered right at each attack's best setting")
    ax.set_title(f"sae_erase on fresh worlds, {len(cells)} of {len(FRESH)} cells")
    if names:
        ax.legend(frameon=False, loc="lower right")


SIZES = {
    "targets1": ("1 of 100", "targets1_gold"),
    "sae_erase": ("10 of 100", "gold"),
    "targets30": ("30 of 100", "targets30_gold"),
    "targets30_long": ("30 of 100,\n360 steps", "targets30_gold"),
    "large": ("10 of 200,\nsix blocks", "large_gold"),
    "sequence": ("30 in three\nrequests", "targets30_gold"),
    "sequence_no_replay": ("the same,\nno replay", "targets30_gold"),
}
"""Setting -> (words, its gold model)."""


def scale(axes: Sequence[Axes], found: Found) -> None:
    """More and fewer targets, a larger world, three requests: what the best attack gets out, and what is kept of people in no loss."""
    panels = {
        "What the best attack gets out,\nbeyond its control": worst,
        "People in no loss:\nquestions that are answered": lambda r: r.get("retain/accuracy_unseen"),
    }
    for ax, (title, value) in zip(axes, panels.items(), strict=True):
        for x, (setting, (_, gold)) in enumerate(SIZES.items()):
            results = {"sae_erase": _of(found, setting), "gold model": _of(found, gold)}
            if not results["gold model"] and value is worst:
                results["gold model"] = [gold_of(r) for r in results["sae_erase"]]
            for label, look in (("sae_erase", run_style(0)), ("gold model", GOLD)):
                values = [v for r in results[label] if (v := value(r)) is not None]
                if values:
                    _point(ax, [x + (0.12 if look is GOLD else -0.12)] * len(values), values, label, look)
        ax.set_xticks(range(len(SIZES)), [words for words, _ in SIZES.values()], fontsize=8)
        ax.set(ylim=(-0.05, 1.05), xlim=(-0.5, len(SIZES) - 0.5))
        ax.set_title(title)
    handles, labels = axes[0].get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    axes[0].legend(by_label.values(), by_label.keys(), frameon=False, loc="upper right")
