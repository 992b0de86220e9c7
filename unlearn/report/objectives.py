"""The five things that one wants of an unlearned model at once, and which settings no other one beats in all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearn.functional.judgement import KEPT
from unlearn.functional.objective import AXES, LOWER_IS_BETTER, axes
from unlearn.functional.pairing import pareto_front
from unlearn.report.fate import judged_numbers
from unlearn.report.names import BASE_METHOD, GOLD_METHOD, base_of
from unlearn.report.pool import Setting, ends_of, mean_of
from unlearn.report.words import forgotten

HEADINGS: Mapping[str, str] = {
    "forgetting": "forgetting: share no\nlonger answered",
    "retention": "retention: worst of\nanswers and fluency",
    "indistinguishability": "indistinguishability\n(1: C2ST at chance)",
    "robustness": "robustness: kept from\nthe best attack",
    "cost": "cost: CPU seconds\nof training",
}
"""Axis of ``unlearn.functional.objective.axes`` -> heading over two lines."""


@dataclass(frozen=True)
class Side:
    """One axis of a setting: its mean over seeds (nan where it was not measured) and the 95 % interval, the mean itself for one seed."""

    mean: float
    low: float
    high: float


def sides(settings: Sequence[Setting]) -> list[dict[str, Side]]:
    """The five axes of every setting, see ``unlearn.functional.objective.axes``."""
    base = base_of(settings)
    return [{axis: _side([axes(judged_numbers(run, base))[axis] for run in s.runs]) for axis in AXES} for s in settings]


def measured(found: Sequence[Mapping[str, Side]]) -> list[str]:
    """The axes that some setting has."""
    return [axis for axis in AXES if any(math.isfinite(one[axis].mean) for one in found)]


def front(settings: Sequence[Setting]) -> list[bool]:
    """Whether each setting lies on the Pareto front of the measured axes, the original and the gold model left out.

    What a setting lacks and others have counts as worst. There is no front with fewer than two axes beside cost.
    """
    found = sides(settings)
    chosen = measured(found)
    trained = [i for i, s in enumerate(settings) if s.method not in (BASE_METHOD, GOLD_METHOD)]
    points = [[(-1 if axis in LOWER_IS_BETTER else 1) * found[i][axis].mean for axis in chosen] for i in trained]
    on_front = {i for i, best in zip(trained, pareto_front(points), strict=True) if best and len(set(chosen) - set(LOWER_IS_BETTER)) > 1}
    return [i in on_front for i in range(len(settings))]


def _side(values: Sequence[float]) -> Side:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Side(math.nan, math.nan, math.nan)
    return Side(mean_of(known), *ends_of(known))


@dataclass(frozen=True)
class Look:
    """How a setting is drawn; ``named`` ones have a colour and a label of their own, the others are one grey crowd."""

    color: str
    marker: str
    linestyle: str
    named: bool


MOST_NAMED = 8
"""Settings up to which all are named in a figure of lines or points."""
CROWD = 6
"""Settings that are named where there are more."""


def standing(settings: Sequence[Setting]) -> list[int]:
    """Indices of ``settings``, the most successful first: not collapsed, forgotten, kept, on the front, hard to tell apart."""
    base, on_front = base_of(settings), front(settings)

    def place(i: int) -> tuple[float, ...]:
        s = settings[i]
        forgot = {"yes": 0.0, "in part": 1.0, "no": 2.0, "": 3.0}[forgotten(s, base)]
        kept = s.number("retain/accuracy_unseen") or s.number("retain/accuracy") or 0.0
        return bool(s.number("collapse/flag")), forgot, kept < KEPT, not on_front[i], s.number("latent/c2st_auc") or 1.0

    return sorted(range(len(settings)), key=place)


def looks(settings: Sequence[Setting]) -> list[Look]:
    """Colours for ``settings``; where there are many only the ``CROWD`` most successful have one."""
    from unlearn.report.style import PALETTE, run_style

    chosen = list(range(len(settings)))
    if len(settings) > MOST_NAMED:
        chosen = sorted([i for i in standing(settings) if settings[i].method not in (BASE_METHOD, GOLD_METHOD)][:CROWD])
    grey = Look(PALETTE["band"], "o", "-", named=False)
    return [Look(**run_style(chosen.index(i)), named=True) if i in chosen else grey for i in range(len(settings))]
