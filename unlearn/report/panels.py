"""What all figures share: an empty panel, room for labels, names that keep apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlearn.report.names import labels_of
from unlearn.report.pool import Setting
from unlearn.report.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.9, 3.5
"""Inches of one panel."""
LONGEST = 24
"""Characters of a label in a figure."""


def panel(title: str, height: float = HEIGHT, left: float = 0.86, right: float = 0.15, top: float = 0.36) -> tuple[Figure, Axes]:
    """An empty panel, its title flush with the figure's left edge; ``left``, ``right`` and ``top`` are margins in inches."""
    from matplotlib.figure import Figure

    figure, width = Figure(figsize=(WIDTH, height)), WIDTH - left - right
    ax = figure.add_axes((left / WIDTH, 0.66 / height, width / WIDTH, (height - 0.66 - top) / height))
    ax.set_title(title, loc="left", x=(0.08 - left) / width, y=1 + (top - 0.28) / (height - 0.66 - top), pad=0)
    return figure, ax


def others(ax: Axes, count: int) -> None:
    """Say, in the line of the title, how many settings are drawn in grey."""
    if count:
        figure = ax.figure
        height = figure.get_size_inches()[1]
        figure.text(0.98, 1 - 0.28 / height, f"grey: {count} others", ha="right", color=PALETTE["muted"], fontsize=8.5)


def row_panel(title: str, labels: Sequence[str], top: float = 0.36) -> tuple[Figure, Axes]:
    """An empty panel with one line for each label, the first on top."""
    step = 0.42 if len(labels) <= 8 else 0.24
    figure, ax = panel(title, height=max(1.6, step * len(labels) + 0.8 + top), left=margin(labels), top=top)
    ax.set(ylim=(len(labels) - 0.4, -0.6))
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=False)
    return figure, ax


def margin(labels: Sequence[str]) -> float:
    """Inches that the longest label needs beside a panel."""
    return 0.35 + 0.082 * max((len(label) for label in labels), default=0)


def short_labels(settings: Sequence[Setting]) -> list[str]:
    """Labels of ``settings``, cut where they are long."""
    return [cut(label) for label in labels_of(settings)]


def cut(label: str) -> str:
    """``label``, cut where it is long."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def whisker(ax: Axes, interval: tuple[float, float] | None, place: float, color: str, *, upright: bool = False) -> None:
    """The 95 % interval of a point at ``place`` on the other axis; nothing without one."""
    if interval is not None and interval[0] < interval[1]:
        at = [place, place]
        ax.plot(*((at, interval) if upright else (interval, at)), color=color, linewidth=1.1, zorder=2.5)


def dot(ax: Axes, x: float, y: float, color: str, marker: str, size: float = 7) -> None:
    """One point with a thin edge in the colour of the paper."""
    ax.plot(x, y, marker, color=color, markersize=size, markeredgecolor=PALETTE["paper"], markeredgewidth=0.8, zorder=3)
