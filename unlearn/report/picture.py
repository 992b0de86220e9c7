"""The picture of one run: known, unknown and target entities in the plane that the original model's anchors span."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unlearn.report.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST, FEW = 400, 8
"""Most points of one group that are drawn, more are thinned out evenly; and pictures up to which a report shows so many."""

SIZE, BOX = (4.9, 4.1), (0.13, 0.14, 0.85, 0.78)
"""Inches of the figure; left, bottom, width and height of its panel as shares."""

GROUPS = ("known_ND", "unknown_MD", "target_before_KD", "target_after_KD")


@dataclass(frozen=True)
class Picture:
    """Points in the plane, each array of shape [N, 2], and the share of variance on the two axes, in [0, 1]."""

    known: np.ndarray
    unknown: np.ndarray
    before: np.ndarray
    after: np.ndarray
    shares: tuple[float, float]


def read_picture(path: Path) -> Picture | None:
    """The picture of the activations in ``path``; None where the file is damaged or holds too little."""
    try:
        with np.load(path) as stored:
            groups = [np.asarray(stored[name], dtype=np.float64) for name in GROUPS]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return project(*groups)


def project(known_ND: np.ndarray, unknown_MD: np.ndarray, before_KD: np.ndarray, after_KD: np.ndarray) -> Picture | None:
    """Project on the first two principal components of ``known_ND`` and ``unknown_MD`` together.

    The first axis is turned so that unknown entities lie to the right. None where an array is empty or not finite, widths differ, or there
    are fewer than two features or three anchors.
    """
    groups = [known_ND, unknown_MD, before_KD, after_KD]
    if any(group.ndim != 2 or not len(group) or not np.isfinite(group).all() for group in groups):
        return None
    anchors = np.concatenate(groups[:2]) if len({group.shape[1] for group in groups}) == 1 else np.empty((0, 0))
    if min(anchors.shape) < 2 or len(anchors) < 3:
        return None
    mean = anchors.mean(axis=0)
    _, scale, axes_DD = np.linalg.svd(anchors - mean, full_matrices=False)
    axes_2D = axes_DD[:2]
    towards = (unknown_MD.mean(axis=0) - known_ND.mean(axis=0)) @ axes_2D[0]
    signs = [1.0 if towards >= 0 else -1.0, 1.0 if axes_2D[1][np.abs(axes_2D[1]).argmax()] >= 0 else -1.0]
    axes_2D = axes_2D * np.array(signs)[:, None]
    variance = scale**2 / max(float((scale**2).sum()), 1e-30)
    known, unknown, before, after = ((group - mean) @ axes_2D.T for group in groups)
    return Picture(known, unknown, before, after, (float(variance[0]), float(variance[1])))


def draw_picture(picture: Picture, title: str, most: int = MOST) -> Figure:
    """Known and unknown anchors of the original model, the target entities before and after, and how each one moved."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    ax = figure.add_axes(BOX)
    ax.set_title(title, loc="left", x=(0.016 - BOX[0]) / BOX[2])
    ax.set_xlabel(f"first principal component ({100 * picture.shares[0]:.0f} % of the variance)")
    ax.set_ylabel(f"second principal component ({100 * picture.shares[1]:.0f} %)")
    _frame(ax, np.concatenate([picture.known, picture.unknown, picture.before, picture.after]))
    paper = PALETTE["paper"]
    if len(picture.before) == len(picture.after):
        moves = np.stack([_thin(picture.before, most), _thin(picture.after, most)], axis=1)
        ax.add_collection(LineCollection(list(moves), colors=PALETTE["after"], linewidths=0.5, alpha=0.35, zorder=2))
    for points, role, marker, size, filled in (
        (picture.known, "known", "o", 16, True),
        (picture.unknown, "unknown", "^", 18, True),
        (picture.before, "before", "D", 20, False),
        (picture.after, "after", "D", 22, True),
    ):
        shown = _thin(points, most)
        face, edge = (PALETTE[role], paper) if filled else ("none", PALETTE[role])
        alpha = 0.6 if role in ("known", "unknown") else 0.95
        ax.scatter(
            shown[:, 0], shown[:, 1], size, marker=marker, facecolors=face, edgecolors=edge, linewidths=0.5 if filled else 1.0, alpha=alpha
        )
    _name_clouds(ax, picture)
    return figure


def _frame(ax: Axes, points_N2: np.ndarray) -> None:
    """Limits that show all points at equal scale on both axes, with room for names above."""
    (left, low), (right, high) = points_N2.min(axis=0), points_N2.max(axis=0)
    wide, tall = 1.1 * (right - left), 1.25 * (high - low)
    ratio = (SIZE[0] * BOX[2]) / (SIZE[1] * BOX[3])
    wide, tall = max(wide, tall * ratio, 1e-6), max(tall, wide / ratio, 1e-6)
    middle, bottom = (left + right) / 2, low - 0.05 * tall
    bottom -= max(0.0, 0.95 * tall - 1.2 * (high - low)) / 2
    ax.set(xlim=(middle - wide / 2, middle + wide / 2), ylim=(bottom, bottom + tall))


def _name_clouds(ax: Axes, picture: Picture) -> None:
    """A name at the edge of each cloud, names that would collide moved apart."""
    names = {"known": "known", "unknown": "unknown", "before": "target before", "after": "target after"}
    (low, high), (left, right) = ax.get_ylim(), ax.get_xlim()
    placed: list[tuple[float, float]] = []
    for role in names:
        points = getattr(picture, role)
        x, y = float(np.median(points[:, 0])), float(np.quantile(points[:, 1], 0.98)) + 0.05 * (high - low)
        while any(abs(x - a) < 0.3 * (right - left) and abs(y - b) < 0.065 * (high - low) for a, b in placed):
            y += 0.01 * (high - low)
        placed.append((x, y))
    for (role, name), (x, y) in zip(names.items(), placed, strict=True):
        ax.text(
            x,
            y,
            name,
            color=PALETTE[role],
            ha="center",
            va="center",
            fontweight="bold",
            bbox={"facecolor": PALETTE["paper"], "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        )


def _thin(points: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the points, evenly spaced."""
    return points if len(points) <= most else points[np.linspace(0, len(points) - 1, most).astype(int)]
