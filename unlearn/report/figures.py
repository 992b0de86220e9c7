"""The figures of a report, each one panel wide, so that a page can lay them out as it likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unlearn.report.names import BASE_METHOD, labels_of
from unlearn.report.picture import draw_picture, read_picture
from unlearn.report.style import PALETTE, house_style, run_style, spread
from unlearn.tracking.reader import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.9, 3.5
"""Inches of one panel."""

CURVES: Mapping[str, tuple[str, str]] = {
    "latent/distance_to_known": ("Distance to the known anchors", "mean squared distance\n(standard deviations²)"),
    "latent/distance_to_unknown": ("Distance to the unknown anchors", "mean squared distance\n(standard deviations²)"),
    "latent/p_unknown": ("What the probe says", "probability of “unknown”, from 0 to 1"),
    "latent/c2st_auc": ("Told apart from the unknown?", "AUC of the classifier test\n(0.5 is indistinguishable)"),
}
"""Metric followed over steps -> (title, axis)."""

BANDS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "latent/distance_to_unknown": (("latent/null_distance", "unseen unknown", "unknown"), ("latent/known_distance", "known", "known")),
    "latent/c2st_auc": (("latent/c2st_null", "chance", "unknown"),),
}
"""Metric -> (result key without _low and _high, label, role of the colour) of the bands behind it."""


def figures(records: Sequence[RunRecord]) -> dict[str, Figure]:
    """Every figure that the runs have data for, by file name: ``forget_retain``, ``c2st``, ``steps_<metric>`` and ``picture_<number>``."""
    made: dict[str, Figure] = {}
    with house_style():
        labels = [_short(label) for label in labels_of(records)]
        for name, figure in (("forget_retain", forget_retain(records, labels)), ("c2st", two_sample(records, labels))):
            if figure is not None:
                made[name] = figure
        for key in CURVES:
            figure = curve(records, labels, key)
            if figure is not None:
                made[f"steps_{key.rpartition('/')[2]}"] = figure
        for index, (record, label) in enumerate(zip(records, labels, strict=True)):
            picture = read_picture(record.activations) if record.activations and record.method != BASE_METHOD else None
            if picture is not None:
                made[f"picture_{index + 1}"] = draw_picture(picture, label)
    return made


def forget_retain(records: Sequence[RunRecord], labels: Sequence[str]) -> Figure | None:
    """Retain accuracy against forget accuracy, one labelled point for each run; None where no run has both."""
    points = [(i, record.number("forget/accuracy"), record.number("retain/accuracy")) for i, record in enumerate(records)]
    known = [(i, x, y) for i, x, y in points if x is not None and y is not None]
    if not known:
        return None
    figure, ax = _panel("What is forgotten, what is kept")
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.08))
    ax.set_xlabel("forget accuracy: questions about the entities\nto be forgotten that are answered (lower is better)")
    ax.set_ylabel("retain accuracy: other questions\nanswered (higher is better)")
    for i, x, y in known:
        style = run_style(i)
        ax.plot(x, y, style["marker"], color=style["color"], markersize=7, markeredgecolor=PALETTE["paper"], markeredgewidth=0.8, zorder=3)
    for left in (True, False):
        side = [(i, x, y) for i, x, y in known if (x < 0.5) == left]
        places = spread([y for _, _, y in side], 0.075, 0.0, 1.03)
        for (i, x, y), place in zip(side, places, strict=True):
            end = x + 0.09 if left else x - 0.09
            ax.plot([x, end - (0.01 if left else -0.01)], [y, place], color=run_style(i)["color"], linewidth=0.7, zorder=2)
            ax.text(end, place, labels[i], color=run_style(i)["color"], ha="left" if left else "right", va="center")
    return figure


def two_sample(records: Sequence[RunRecord], labels: Sequence[str]) -> Figure | None:
    """C2ST AUC of each run beside the interval that two groups of unknown entities give; None where no run has one."""
    rows = [(i, record.number("latent/c2st_auc")) for i, record in enumerate(records)]
    known = [(i, value) for i, value in rows if value is not None]
    if not known:
        return None
    margin, height = _margin([labels[i] for i, _ in known]), max(2.2, 0.42 * len(known) + 1.5)
    figure, ax = _panel("Can the entities be told from unknown ones?", height=height, left=margin)
    ax.set(xlim=(-0.03, 1.03), ylim=(len(known) - 0.4, -0.9), yticks=[])
    ax.set_xlabel("AUC of the classifier test (0.5 is indistinguishable);\nbars: chance, 95 % of pairs of unknown groups")
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=False)
    ax.axvline(0.5, color=PALETTE["muted"], linewidth=0.8)
    for row, (i, value) in enumerate(known):
        low, high = (records[i].number(f"latent/c2st_null_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            ax.plot([low, high], [row, row], color=PALETTE["band"], alpha=0.45, linewidth=9, solid_capstyle="butt", zorder=2)
        style = run_style(i)
        ax.plot(
            value, row, style["marker"], color=style["color"], markersize=7, markeredgecolor=PALETTE["paper"], markeredgewidth=0.8, zorder=3
        )
        ax.text(-0.05, row, labels[i], ha="right", va="center")
        ax.text(value, row - 0.25, f"{value:.2f}", ha="center", va="bottom", color=style["color"], fontsize=8.5)
    return figure


def curve(records: Sequence[RunRecord], labels: Sequence[str], key: str) -> Figure | None:
    """The metric ``key`` over optimiser steps, one line for each run, labelled at its end; None where no run has it."""
    lines = [(i, *record.series(key)) for i, record in enumerate(records)]
    lines = [(i, steps, values) for i, steps, values in lines if len(steps) > 1 and np.isfinite(values).all()]
    if not lines:
        return None
    title, axis = CURVES[key]
    figure, ax = _panel(title, right=_margin([labels[i] for i, _, _ in lines]))
    last = max(steps[-1] for _, steps, _ in lines)
    ax.set(xlabel="optimiser step", ylabel=axis, xlim=(0, last))
    for i, steps, values in lines:
        ax.plot(steps, values, **run_style(i), markevery=max(1, len(steps) // 6), clip_on=False)
    if key in ("latent/p_unknown", "latent/c2st_auc"):
        ax.set_ylim(-0.03, 1.05)
    else:
        ax.set_ylim(bottom=0)
    _bands(ax, records, key)
    low, high = ax.get_ylim()
    gap = 0.062 * (high - low)
    for (i, steps, values), place in zip(lines, spread([v[-1] for _, _, v in lines], gap, low, high), strict=True):
        ax.annotate(
            labels[i],
            (steps[-1], values[-1]),
            xytext=(last * 1.045, place),
            color=run_style(i)["color"],
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": run_style(i)["color"], "linewidth": 0.6, "shrinkA": 1, "shrinkB": 1},
        )
    return figure


def _bands(ax: Axes, records: Sequence[RunRecord], key: str) -> None:
    """Where unknown and known entities lie in the original model; only bands on which the runs agree are drawn."""
    for name, label, role in BANDS.get(key, ()):
        ends = {(record.number(f"{name}_low"), record.number(f"{name}_high")) for record in records} - {(None, None)}
        if len(ends) != 1:
            continue
        low, high = ends.pop()
        if low is None or high is None:
            continue
        ax.axhspan(low, high, color=PALETTE[role], alpha=0.16, linewidth=0, zorder=0)
        if high > ax.get_ylim()[1]:
            ax.set_ylim(top=high * 1.05)
        x, y, side = _free_place(ax, low, high)
        ax.text(x, y, label, transform=ax.get_yaxis_transform(), color=PALETTE["muted"], fontsize=8.5, ha=side, va="center")


def _free_place(ax: Axes, low: float, high: float) -> tuple[float, float, str]:
    """Where a label in the band from ``low`` to ``high`` is farthest from every line: share of the width, height, alignment."""
    (bottom, top), end = ax.get_ylim(), ax.get_xlim()[1]
    inset = min(0.045 * (top - bottom), (high - low) / 2)
    places = [(x, y, side) for y in (high - inset, low + inset) for x, side in ((0.985, "right"), (0.5, "center"), (0.03, "left"))]
    curves = [line.get_xydata() for line in ax.get_lines()]

    def room(place: tuple[float, float, str]) -> float:
        x, y, side = place
        start = {"right": x - 0.42, "center": x - 0.21, "left": x}[side]
        across = np.linspace(max(0.0, start), min(1.0, start + 0.42), 9) * end
        return min((float(np.abs(np.interp(across, *np.asarray(curve).T) - y).min()) for curve in curves), default=0.0)

    return max(places, key=room)


def _panel(title: str, height: float = HEIGHT, left: float = 0.86, right: float = 0.15) -> tuple[Figure, Axes]:
    """An empty panel, its title flush with the figure's left edge; ``left`` and ``right`` are margins in inches."""
    from matplotlib.figure import Figure

    figure, width = Figure(figsize=(WIDTH, height)), WIDTH - left - right
    ax = figure.add_axes((left / WIDTH, 0.66 / height, width / WIDTH, (height - 0.66 - 0.36) / height))
    ax.set_title(title, loc="left", x=(0.08 - left) / width)
    return figure, ax


def _margin(labels: Sequence[str]) -> float:
    """Inches that the longest label needs beside a panel."""
    return 0.35 + 0.082 * max(len(label) for label in labels)


def _short(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"
