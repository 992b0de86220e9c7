"""The five things that one wants of an unlearned model at once, and which settings no other one beats in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unlearn.functional.judgement import KEPT
from unlearn.report.names import BASE_METHOD, GOLD_METHOD, base_of
from unlearn.report.pool import Setting
from unlearn.report.words import forgotten


@dataclass(frozen=True)
class Objective:
    """``keys``: the first result that is there counts; ``lower`` says which way is better; ``share`` that it lies in [0, 1]."""

    name: str
    axis: str
    keys: tuple[str, ...]
    lower: bool = True
    share: bool = True

    def key(self, settings: Sequence[Setting]) -> str | None:
        """The key that most of ``settings`` have, earlier ones first; None where none has any."""
        counts = {key: sum(s.number(key) is not None for s in settings) for key in self.keys}
        best = max(self.keys, key=lambda key: counts[key])
        return best if counts[best] else None


OBJECTIVES: tuple[Objective, ...] = (
    Objective("forgetting", "forget accuracy", ("forget/accuracy_paraphrased", "forget/accuracy")),
    Objective("retention", "retain accuracy,\nunseen people", ("retain/accuracy_unseen", "retain/accuracy"), lower=False),
    Objective("indistinguishability", "C2ST AUC\n(0.5: not told apart)", ("latent/c2st_auc",)),
    Objective("robustness", "facts back after\nrelearning (excess)", ("attack/relearn_excess", "attack/relearn_recovery")),
    Objective("cost", "CPU seconds\nof training", ("cost/train_cpu_seconds", "cost/train_seconds"), share=False),
)


def measured(settings: Sequence[Setting]) -> list[tuple[Objective, str]]:
    """The objectives that some setting has, each with the key that stands for it."""
    return [(objective, key) for objective in OBJECTIVES if (key := objective.key(settings)) is not None]


def front(settings: Sequence[Setting]) -> list[bool]:
    """Whether each setting lies on the Pareto front of the measured objectives, the original and the gold model left out.

    A C2ST AUC below 0.5 counts as 0.5, an excess below 0 as 0: both are chance. A setting that lacks an objective lies on no front.
    """
    chosen = measured(settings)
    costs_NM = np.array([[_cost(s, objective, key) for objective, key in chosen] for s in settings], dtype=float).reshape(len(settings), -1)
    usable = np.array([s.method not in (BASE_METHOD, GOLD_METHOD) for s in settings], dtype=bool) & np.isfinite(costs_NM).all(axis=1)
    if len(chosen) < 2:
        return [False] * len(settings)
    return [bool(ok) and not _beaten(costs_NM[usable], row) for ok, row in zip(usable, costs_NM, strict=True)]


def _beaten(costs_NM: np.ndarray, row_M: np.ndarray) -> bool:
    return bool(((costs_NM <= row_M).all(axis=1) & (costs_NM < row_M).any(axis=1)).any())


def _cost(setting: Setting, objective: Objective, key: str) -> float:
    """What is to be made small."""
    value = setting.number(key)
    if value is None:
        return float("nan")
    floor = {"latent/c2st_auc": 0.5, "attack/relearn_excess": 0.0}.get(key, -np.inf)
    return max(floor, value) if objective.lower else -value


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
