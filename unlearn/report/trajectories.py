"""What happens over the steps of training: distances in latent space, with the bands in which known and unknown entities lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unlearn.report.objectives import Look
from unlearn.report.panels import margin, others, panel
from unlearn.report.pool import Setting
from unlearn.report.style import PALETTE, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[int, Sequence[float], Sequence[float]]
"""Index of the setting, places on x, heights."""

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

SHARES = ("latent/p_unknown", "latent/c2st_auc")
MOST_APART = 0.05
"""How far settings may differ in a band, as a share of its width, to have one band drawn for all."""


def trajectory(settings: Sequence[Setting], labels: Sequence[str], looks: Sequence[Look], key: str) -> Figure | None:
    """The metric ``key`` over optimiser steps, one line for each setting (mean over seeds, its interval shaded); None without any."""
    found = [(i, *s.curve(key)) for i, s in enumerate(settings)]
    found = [line for line in found if len(line[1]) > 1 and np.isfinite(line[2]).all()]
    if not found:
        return None
    title, axis = CURVES[key]
    figure, ax = panel(title, right=margin([labels[line[0]] for line in found if looks[line[0]].named]))
    last = max(steps[-1] for _, steps, *_ in found)
    ax.set(xlabel="optimiser step", ylabel=axis, xlim=(0, last))
    for i, steps, values, low, high in sorted(found, key=lambda line: looks[line[0]].named):
        draw_line(ax, looks[i], steps, values, low, high)
    if key in SHARES:
        ax.set_ylim(-0.03, 1.05)
    else:
        ax.set_ylim(bottom=0)
    _bands(ax, settings, key)
    name_lines(ax, [(i, steps, values) for i, steps, values, *_ in found], labels, looks)
    return figure


def draw_line(
    ax: Axes, look: Look, xs: Sequence[float], ys: Sequence[float], low: Sequence[float] = (), high: Sequence[float] = ()
) -> None:
    """One line with its interval; a setting that is not named is thin and grey."""
    if not look.named:
        ax.plot(xs, ys, color=look.color, linewidth=0.8, alpha=0.6, zorder=1.5)
        return
    if any(a < b for a, b in zip(low, high, strict=True)):
        ax.fill_between(xs, low, high, color=look.color, alpha=0.15, linewidth=0)
    every = max(1, len(xs) // 6)
    ax.plot(xs, ys, color=look.color, marker=look.marker, linestyle=look.linestyle, markevery=every, clip_on=False)


def name_lines(ax: Axes, lines: Sequence[Line], labels: Sequence[str], looks: Sequence[Look]) -> None:
    """The label of each named line at its end, and how many others there are."""
    (low, high), (start, last) = ax.get_ylim(), ax.get_xlim()
    named = [line for line in lines if looks[line[0]].named]
    gap, edge = 0.062 * (high - low), last * (last / start) ** 0.045 if ax.get_xscale() == "log" else last + 0.045 * (last - start)
    for (i, xs, ys), place in zip(named, spread([ys[-1] for _, _, ys in named], gap, low, high), strict=True):
        ax.annotate(
            labels[i],
            (xs[-1], ys[-1]),
            xytext=(edge, place),
            color=looks[i].color,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": looks[i].color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 1},
        )
    others(ax, len(lines) - len(named))


def _bands(ax: Axes, settings: Sequence[Setting], key: str) -> None:
    """Where unknown and known entities lie in the original model; only bands on which the settings agree are drawn."""
    for name, label, role in BANDS.get(key, ()):
        ends = [(s.number(f"{name}_low"), s.number(f"{name}_high")) for s in settings]
        known = [(low, high) for low, high in ends if low is not None and high is not None]
        if not known:
            continue
        low, high = (float(end) for end in np.median(np.array(known), axis=0))
        apart = float(np.abs(np.array(known) - (low, high)).max())
        if apart > MOST_APART * max(high - low, 1e-12):
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
