"""Is it erased or hidden? What every attack gets out of each setting, and what relearning brings back, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unlearn.functional.judgement import attack_excesses
from unlearn.report.attacks import attack_series, best_at, curve_places, relearning_figure
from unlearn.report.fate import Fate, fate, numbers
from unlearn.report.names import DASH, base_of, labels_of
from unlearn.report.objectives import Look
from unlearn.report.panels import WIDTH, margin, panel
from unlearn.report.pool import Setting
from unlearn.report.style import PALETTE
from unlearn.report.trajectories import draw_line, name_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Attacked:
    """One setting under attack: ``cells`` are (text, interval, whether facts get out with any seed), one for each attack."""

    label: str
    word: str
    reason: str
    cells: tuple[tuple[str, str, bool], ...]


def attacked(settings: Sequence[Setting]) -> tuple[list[str], list[Attacked]]:
    """Names of the attacks that were made, and one line for each setting that was attacked."""
    found = [attack_excesses(numbers(s)) for s in settings]
    names = sorted({name for excesses in found for name in excesses})
    lines, base = [], base_of(settings)
    for setting, label, excesses in zip(settings, labels_of(settings), found, strict=True):
        if not excesses:
            continue
        became = fate(setting, base)
        lines.append(Attacked(label, became.counted, became.reason, tuple(_cell(setting, name, became) for name in names)))
    return names, lines


def _cell(setting: Setting, name: str, became: Fate) -> tuple[str, str, bool]:
    value, ends = setting.number(f"attack/{name}_excess"), setting.interval(f"attack/{name}_excess")
    if value is None:
        return DASH, "", False
    shown = [f"{end:+.2f}" for end in ends or ()]
    return f"{value:+.2f}", " to ".join(shown) if len(set(shown)) == 2 else "", name in became.leaks


def relearn_curves(settings: Sequence[Setting], labels: Sequence[str], looks: Sequence[Look]) -> Figure | None:
    """Facts that come back over the steps of relearning others, one line for each setting; None where nobody tried."""
    found = {(i, side): points for i, s in enumerate(settings) for side, points in _points(s).items()}
    targets = [(i, xs, ys) for (i, side), (xs, ys) in found.items() if side == "target"]
    if not targets or max(len(xs) for _, xs, _ in targets) < 2:
        return None
    figure, ax = panel("Facts back after relearning others", top=0.55, right=margin([labels[i] for i, *_ in targets if looks[i].named]))
    steps = sorted({x for _, xs, _ in targets for x in xs})
    ax.set(xscale="log", xlim=(steps[0], steps[-1]), ylim=(-0.03, 1.05), xlabel="steps of relearning, best learning rate at each")
    ax.set_ylabel("questions about other facts\nof the targets answered")
    ax.set_xticks(steps, [str(step) for step in steps])
    ax.minorticks_off()
    for i, xs, ys in sorted(targets, key=lambda line: looks[line[0]].named):
        draw_line(ax, looks[i], xs, ys)
    for side, dashes, words in (("control", "--", "control"), ("gold", ":", "gold model")):
        lines = [points for (_, kind), points in found.items() if kind == side]
        if lines:
            mean = [float(np.mean([y for xs, ys in lines for x, y in zip(xs, ys, strict=True) if x == step])) for step in steps]
            ax.plot(steps, mean, dashes, color=PALETTE["muted"], linewidth=1.3, label=words, zorder=2)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=2, frameon=False, fontsize=8.5, handlelength=2.2, borderpad=0.1)
    name_lines(ax, targets, labels, looks)
    return figure


def _points(setting: Setting) -> dict[str, tuple[list[int], list[float]]]:
    """Steps, and right answers at the best learning rate of each, for every side, mean over seeds."""
    by_side: dict[str, dict[int, list[float]]] = {}
    for run in setting.runs:
        cells, series = attack_series(run.path, "relearn")
        places = curve_places(cells)
        xs = sorted(set(places))
        for side, values in series.items():
            for x, y in zip(xs, best_at(xs, places, values) if places else [], strict=True):
                if y == y:
                    by_side.setdefault(side, {}).setdefault(x, []).append(y)
    return {
        side: (sorted(points), [float(np.mean(points[x])) for x in sorted(points)])
        for side, points in by_side.items()
        if side in ("target", "control", "gold")
    }


def relearn_dots(settings: Sequence[Setting], labels: Sequence[str]) -> Figure | None:
    """Recovery of each setting with its interval beside control and gold model; None where nobody tried."""
    key = "attack/relearn"
    tried = [(s, label) for s, label in zip(settings, labels, strict=True) if s.number(f"{key}_recovery") is not None]
    if not tried:
        return None
    summary = {label: _entries(s, key) for s, label in tried}
    words = {label: fate(s, base_of(settings)).word for s, label in tried}
    return relearning_figure(summary, words, width=WIDTH)


def _entries(setting: Setting, key: str) -> dict[str, dict[str, float]]:
    entries = {}
    for name in ("recovery", "control", "excess", "gold"):
        value = setting.number(f"{key}_{name}")
        if value is not None:
            low, high = setting.interval(f"{key}_{name}") or (value, value)
            entries[f"{key}_{name}"] = {"mean": value, "ci_low": low, "ci_high": high}
    return entries
