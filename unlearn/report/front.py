"""The Pareto front over five goals, one line for each setting and one column for each goal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearn.functional.objective import AXES, LOWER_IS_BETTER
from unlearn.report.comparison import number_in, ordered
from unlearn.report.names import BASE_METHOD, GOLD_METHOD, plain
from unlearn.report.objectives import HEADINGS, Side, front, measured, sides, standing
from unlearn.report.panels import cut, dot, margin, whisker
from unlearn.report.pool import Setting
from unlearn.report.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, GAP = 1.42, 0.17
"""Inches of one goal's panel, and between two."""


@dataclass(frozen=True)
class Row:
    """One line of the figure: its goals, whether it is on the front, and whether it is there for comparison only."""

    label: str
    sides: Mapping[str, Side]
    on_front: bool
    reference: bool


def front_of(settings: Sequence[Setting], labels: Sequence[str]) -> Figure | None:
    """The figure of settings, the best on top; None with fewer than two of them."""
    if len(settings) < 2:
        return None
    found, on_front = sides(settings), front(settings)
    rows = [Row(labels[i], found[i], on_front[i], settings[i].method in (BASE_METHOD, GOLD_METHOD)) for i in standing(settings)]
    return front_figure(rows)


def front_of_comparison(summary: Mapping[str, Any]) -> Figure | None:
    """The figure of a comparison: methods with all seeds by rank, then what is there for comparison; None with fewer than two methods."""
    methods = summary["methods"]
    ranked = [name for name in ordered(summary) if "pareto" in methods[name]]
    beside = [name for name in ordered(summary) if not methods[name]["tuned"] and methods[name]["complete"]]
    rows = [
        Row(cut(plain(name)), {axis: _side_of(methods[name][axis]) for axis in AXES}, bool(methods[name].get("pareto")), name in beside)
        for name in (*ranked, *beside)
    ]
    return front_figure(rows) if len(ranked) > 1 else None


def _side_of(entry: Mapping[str, Any]) -> Side:
    mean, low, high = (number_in(entry, name) for name in ("mean", "ci_low", "ci_high"))
    if mean is None:
        return Side(math.nan, math.nan, math.nan)
    return Side(mean, mean if low is None else low, mean if high is None else high)


def front_figure(rows: Sequence[Row]) -> Figure | None:
    """Every goal that was measured, rows on the front filled and bold, in the given order; None with fewer than two goals beside cost."""
    from matplotlib.figure import Figure

    goals = measured([row.sides for row in rows])
    if len(set(goals) - set(LOWER_IS_BETTER)) < 2:
        return None
    left, step = margin([row.label for row in rows]), 0.34 if len(rows) <= 8 else 0.23
    width, height = left + len(goals) * (COLUMN + GAP) + 0.05, step * len(rows) + 1.45
    figure = Figure(figsize=(width, height))
    title = "Pareto front: filled and bold, no other setting is as good in every column"
    figure.text(0.08 / width, 1 - 0.1 / height, title, fontweight="bold", fontsize=10.5, va="top")
    for column, goal in enumerate(goals):
        x = left + column * (COLUMN + GAP)
        ax = figure.add_axes((x / width, 0.5 / height, COLUMN / width, (height - 1.4) / height))
        _column(ax, rows, goal)
        ax.set_yticks(range(len(rows)), [row.label for row in rows] if column == 0 else [])
        for tick, row in zip(ax.get_yticklabels(), rows, strict=False):
            tick.set_fontweight("bold" if row.on_front else "normal")
    return figure


def _column(ax: Axes, rows: Sequence[Row], goal: str) -> None:
    """One goal: a dot with its interval on every line."""
    lower = goal in LOWER_IS_BETTER
    ax.set_title(f"{HEADINGS[goal]}\n{'← better' if lower else 'better →'}", fontsize=8.5, fontweight="normal", loc="left", x=0.0)
    for place, row in enumerate(rows):
        value = row.sides[goal]
        if math.isnan(value.mean):
            continue
        color = PALETTE["muted" if row.reference else "run-0" if row.on_front else "run-1"]
        whisker(ax, (value.low, value.high), place, color)
        dot(ax, value.mean, place, color, "d" if row.reference else "o")
        if not row.reference and not row.on_front:
            ax.get_lines()[-1].set(markerfacecolor=PALETTE["hole"], markeredgecolor=color, markeredgewidth=1.2)
    if lower:
        ax.set_xlim(left=-0.03 * ax.get_xlim()[1])
    else:
        ax.set_xlim(-0.05, 1.05)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=True)
