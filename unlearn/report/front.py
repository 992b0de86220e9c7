"""The Pareto front over five goals, one line for each setting and one column for each goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlearn.functional.objective import LOWER_IS_BETTER
from unlearn.report.names import BASE_METHOD, GOLD_METHOD
from unlearn.report.objectives import HEADINGS, Side, front, measured, sides, standing
from unlearn.report.panels import dot, margin, whisker
from unlearn.report.pool import Setting
from unlearn.report.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, GAP = 1.42, 0.17
"""Inches of one goal's panel, and between two."""


def front_figure(settings: Sequence[Setting], labels: Sequence[str]) -> Figure | None:
    """Every goal that was measured, settings on the front filled and bold, the best on top; None with fewer than two goals beside cost."""
    from matplotlib.figure import Figure

    found = sides(settings)
    goals = measured(found)
    if len(set(goals) - set(LOWER_IS_BETTER)) < 2 or len(settings) < 2:
        return None
    order, on_front = standing(settings), front(settings)
    left, step = margin(labels), 0.34 if len(settings) <= 8 else 0.23
    width, height = left + len(goals) * (COLUMN + GAP) + 0.05, step * len(order) + 1.45
    figure = Figure(figsize=(width, height))
    title = "Pareto front: filled and bold, no other setting is as good in every column"
    figure.text(0.08 / width, 1 - 0.1 / height, title, fontweight="bold", fontsize=10.5, va="top")
    for column, goal in enumerate(goals):
        x = left + column * (COLUMN + GAP)
        ax = figure.add_axes((x / width, 0.5 / height, COLUMN / width, (height - 1.4) / height))
        _column(ax, settings, order, on_front, [one[goal] for one in found], goal)
        ax.set_yticks(range(len(order)), [labels[i] for i in order] if column == 0 else [])
        for tick, i in zip(ax.get_yticklabels(), order, strict=False):
            tick.set_fontweight("bold" if on_front[i] else "normal")
    return figure


def _column(
    ax: Axes, settings: Sequence[Setting], order: Sequence[int], on_front: Sequence[bool], values: Sequence[Side], goal: str
) -> None:
    """One goal: a dot with its interval on every line."""
    lower = goal in LOWER_IS_BETTER
    ax.set_title(f"{HEADINGS[goal]}\n{'← better' if lower else 'better →'}", fontsize=8.5, fontweight="normal", loc="left", x=0.0)
    for place, i in enumerate(order):
        if math.isnan(values[i].mean):
            continue
        reference = settings[i].method in (BASE_METHOD, GOLD_METHOD)
        color = PALETTE["muted" if reference else "run-0" if on_front[i] else "run-1"]
        whisker(ax, (values[i].low, values[i].high), place, color)
        dot(ax, values[i].mean, place, color, "d" if reference else "o")
        if not reference and not on_front[i]:
            ax.get_lines()[-1].set(markerfacecolor=PALETTE["hole"], markeredgecolor=color, markeredgewidth=1.2)
    if lower:
        ax.set_xlim(left=-0.03 * ax.get_xlim()[1])
    else:
        ax.set_xlim(-0.05, 1.05)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=True)
