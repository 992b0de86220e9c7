"""Settings as points: two goals against each other, and how well a classifier tells the target from unknown entities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.report.names import BASE_METHOD, GOLD_METHOD
from unlearn.report.objectives import Look
from unlearn.report.panels import dot, others, panel, row_panel, whisker
from unlearn.report.pool import Setting
from unlearn.report.style import PALETTE, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plane:
    """Two results against each other; ``low`` of the one on y is good where ``falls``."""

    title: str
    x: str
    y: str
    x_axis: str
    y_axis: str
    falls: bool = False


FORGET_RETAIN = Plane(
    "What is forgotten, what is kept",
    "forget/accuracy",
    "retain/accuracy",
    "forget accuracy: questions about the entities\nto be forgotten that are answered (lower is better)",
    "retain accuracy: other questions\nanswered (higher is better)",
)
HIDDEN = Plane(
    "Hard to tell apart, hard to bring back",
    "latent/c2st_auc",
    "attack/relearn_excess",
    "AUC of the classifier test\n(0.5 is indistinguishable, 1 is told apart)",
    "facts back after relearning others,\nbeyond the control (lower is better)",
    falls=True,
)


def plane(settings: Sequence[Setting], labels: Sequence[str], looks: Sequence[Look], what: Plane) -> Figure | None:
    """One point for each setting with its intervals, and the settings that none beats in both; None where none has both results."""
    points = [(i, s.number(what.x), s.number(what.y)) for i, s in enumerate(settings)]
    known = [(i, x, y) for i, x, y in points if x is not None and y is not None]
    if not known:
        return None
    figure, ax = panel(what.title)
    low = min(0.0, *(y for _, _, y in known)) - 0.05
    ax.set(xlim=(-0.05, 1.05), ylim=(low, 1.08), xlabel=what.x_axis, ylabel=what.y_axis)
    _stairs(ax, [(x, y) for i, x, y in known if settings[i].method not in (BASE_METHOD, GOLD_METHOD)], what.falls)
    for i, x, y in sorted(known, key=lambda point: looks[point[0]].named):
        look = looks[i]
        whisker(ax, settings[i].interval(what.x), y, look.color)
        whisker(ax, settings[i].interval(what.y), x, look.color, upright=True)
        dot(ax, x, y, look.color, look.marker, 7 if look.named else 4.5)
    _names(ax, [point for point in known if looks[point[0]].named], labels, looks)
    others(ax, sum(not looks[i].named for i, _, _ in known))
    return figure


def _stairs(ax: Axes, points: Sequence[tuple[float, float]], falls: bool) -> None:
    """The edge of what the settings reach: for every x the best y at or left of it."""
    sign, edge = (-1.0 if falls else 1.0), list[tuple[float, float]]()
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not edge or sign * y > sign * edge[-1][1]:
            edge.append((x, y))
    if edge:
        xs, ys = [x for x, _ in edge] + [1.05], [y for _, y in edge] + [edge[-1][1]]
        ax.plot(xs, ys, color=PALETTE["band"], linewidth=0.9, linestyle="--", drawstyle="steps-post", zorder=1)


def _names(ax: Axes, known: Sequence[tuple[int, float, float]], labels: Sequence[str], looks: Sequence[Look]) -> None:
    """A label beside each point, on the side where there is room."""
    low, high = ax.get_ylim()
    for left in (True, False):
        side = [(i, x, y) for i, x, y in known if (x < 0.5) == left]
        gap = 0.066 * (high - low)
        wishes = [_free(x, y, [(a, b) for j, a, b in known if j != i], len(labels[i]), gap, left=left) for i, x, y in side]
        places = spread(wishes, gap, low + 0.05, high - 0.05)
        for (i, x, y), place in zip(side, places, strict=True):
            end = x + 0.09 if left else x - 0.09
            ax.plot([x, end - (0.01 if left else -0.01)], [y, place], color=looks[i].color, linewidth=0.7, zorder=2)
            ax.text(end, place, labels[i], color=looks[i].color, ha="left" if left else "right", va="center")


def _free(x: float, y: float, rest: Sequence[tuple[float, float]], length: int, gap: float, *, left: bool) -> float:
    """The height nearest to ``y`` at which the label of the point at (x, y) runs over no other point."""
    start, end = (x + 0.05, x + 0.12 + 0.02 * length) if left else (x - 0.12 - 0.02 * length, x - 0.05)
    met = [b for a, b in rest if start < a < end]
    heights = [y + step * gap for step in (0.0, 0.8, -0.8, 1.6, -1.6)]
    return next((height for height in heights if all(abs(height - b) > 0.7 * gap for b in met)), y)


def two_sample(settings: Sequence[Setting], labels: Sequence[str], looks: Sequence[Look]) -> Figure | None:
    """C2ST AUC of each setting beside the interval that two groups of unknown entities give; None where none has one."""
    known = [(i, value) for i, s in enumerate(settings) if (value := s.number("latent/c2st_auc")) is not None]
    if not known:
        return None
    figure, ax = row_panel("Can the entities be told from unknown ones?", [labels[i] for i, _ in known])
    ax.set(xlim=(-0.03, 1.03))
    ax.set_xlabel("AUC of the classifier test\n(0.5 is indistinguishable; bars: chance)")
    ax.axvline(0.5, color=PALETTE["muted"], linewidth=0.8)
    for row, (i, value) in enumerate(known):
        low, high = (settings[i].number(f"latent/c2st_null_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            ax.plot([low, high], [row, row], color=PALETTE["band"], alpha=0.45, linewidth=9, solid_capstyle="butt", zorder=2)
        color = looks[i].color if looks[i].named else PALETTE["muted"]
        whisker(ax, settings[i].interval("latent/c2st_auc"), row, color)
        dot(ax, value, row, color, looks[i].marker)
        if len(known) <= 8:
            ax.text(value, row - 0.25, f"{value:.2f}", ha="center", va="bottom", color=color, fontsize=8.5)
    return figure
