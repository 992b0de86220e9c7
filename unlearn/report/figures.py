"""All figures of a report by name, each one panel wide unless it stands in ``WIDE``, so that a page can lay them out as it likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.report.answers import answer_bars
from unlearn.report.front import front_of, front_of_comparison
from unlearn.report.names import BASE_METHOD, plain
from unlearn.report.objectives import looks
from unlearn.report.panels import short_labels
from unlearn.report.picture import FEW, MOST, draw_picture, read_picture
from unlearn.report.pool import Setting, pool
from unlearn.report.relearning import relearn_curves, relearn_dots
from unlearn.report.scatter import FORGET_RETAIN, HIDDEN, plane, two_sample
from unlearn.report.style import house_style, save
from unlearn.report.trajectories import CURVES, trajectory
from unlearn.tracking.reader import RunRecord, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = ("front",)
"""Figures that are wider than one panel."""

TEXTS = {
    "front": "Every setting under the goals that were measured; those on the Pareto front are filled and bold.",
    "forget_retain": "Retain accuracy against forget accuracy; the upper left corner is where one wants to be.",
    "hidden": "Facts that relearning brings back against the classifier test; the lower left is where one wants to be.",
    "c2st": "AUC of the classifier two-sample test, with the interval that two groups of unknown entities give.",
    "answers": "Shares of kinds of answers about the targets, and about real unknown names.",
    "relearn": "Share of facts that come back over steps of relearning other facts, with the control on unknown names.",
    "relearning": "Share of facts that relearning brings back at the best setting, with control and gold model.",
    **{f"steps_{key.rpartition('/')[2]}": f"{title}: {axis.replace(chr(10), ' ')}, over steps." for key, (title, axis) in CURVES.items()},
}
"""Figure -> what it shows, for those who do not see it; ``describe`` knows the pictures too."""


def describe(name: str, figure: Figure) -> str:
    """What a figure shows, in words."""
    title = figure.axes[0].get_title(loc="left") if figure.axes else ""
    return TEXTS.get(name) or f"Activations of known, unknown and target entities before and after: {title}."


def figures(records: Sequence[RunRecord], comparison: Mapping[str, Any] | None = None) -> dict[str, Figure]:
    """Every figure that the runs have data for, by file name; seeds of one setting are drawn as one.

    The Pareto front is that of the ``comparison`` where there is one.

    ``TEXTS`` names them; ``picture_<number>`` is the plane of activations of one setting (its first seed).
    """
    settings = pool(records)
    made: dict[str, Figure | None] = {}
    with house_style():
        labels, styles = short_labels(settings), looks(settings)
        made["front"] = front_of(settings, labels) if comparison is None else front_of_comparison(comparison)
        made["forget_retain"] = plane(settings, labels, styles, FORGET_RETAIN)
        made["hidden"] = plane(settings, labels, styles, HIDDEN)
        made["c2st"] = two_sample(settings, labels, styles)
        made["answers"] = answer_bars(settings, labels)
        for key in CURVES:
            made[f"steps_{key.rpartition('/')[2]}"] = trajectory(settings, labels, styles, key)
        made["relearn"] = relearn_curves(settings, labels, styles)
        made["relearning"] = relearn_dots(settings, labels)
        made |= _pictures(settings, labels)
    return {name: figure for name, figure in made.items() if figure is not None}


def draw_run(path: Path) -> list[Path]:
    """Write what one run has to show (trajectories, kinds of answers, its plane) to ``plots`` below ``path``, as PNG and SVG."""
    drawn = figures([read_run(path)])
    own = {name: figure for name, figure in drawn.items() if name.startswith(("steps_", "picture_", "answers"))}
    return [file for name, figure in own.items() for file in save(figure, path / "plots", name.replace("picture_1", "picture"))]


def _pictures(settings: Sequence[Setting], labels: Sequence[str]) -> dict[str, Figure | None]:
    shown = [(i, s) for i, s in enumerate(settings) if s.activations and s.method != BASE_METHOD]
    most = MOST if len(shown) <= FEW else MOST // 5
    made: dict[str, Figure | None] = {}
    for i, setting in shown:
        picture = read_picture(setting.activations) if setting.activations else None
        title = labels[i] if len(setting.runs) == 1 else f"{labels[i]} (seed {plain(setting.seeds[0])})"
        made[f"picture_{i + 1}"] = draw_picture(picture, title, most) if picture is not None else None
    return made
