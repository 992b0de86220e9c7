"""Several seeds of one setting as one row of a report: means, intervals over seeds, and the runs they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.functional.statistics import bootstrap_interval
from unlearn.report.names import plain
from unlearn.report.summary import RESAMPLES, SEED, groups_of
from unlearn.tracking.reader import RunRecord

ENDS = ("/ci_low", "/ci_high")
STATES = ("failed", "killed", "running", "stopped", "finished")
"""States of a run, the one that a reader must know of first."""


@dataclass(frozen=True, kw_only=True)
class Setting(RunRecord):
    """A row of a report: ``runs`` that differ in their seed only, read like a single run.

    With one run everything is that run's. With more, ``results`` holds means over seeds, and ``<key>/ci_low`` and ``/ci_high`` the 95 %
    bootstrap interval of the mean over seeds; samples and activations are those of the first run.
    """

    runs: tuple[RunRecord, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seed of each run, as text."""
        return tuple(plain(run.config.get("seed", 0)) for run in self.runs)

    def interval(self, key: str) -> tuple[float, float] | None:
        """95 % interval of ``key``: over seeds, with one run over entities; None without one."""
        ends = self.number(f"{key}/ci_low"), self.number(f"{key}/ci_high")
        return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])

    def curve(self, key: str) -> tuple[list[int], list[float], list[float], list[float]]:
        """Steps that all runs measured, mean of ``key`` at each, and the ends of its interval over seeds (the mean itself for one run)."""
        found = [dict(zip(*run.series(key), strict=True)) for run in self.runs]
        found = [points for points in found if points]
        steps = sorted(set.intersection(*map(set, found))) if found else []
        values = [[points[step] for points in found] for step in steps]
        ends = [ends_of(column) for column in values]
        return steps, [mean_of(column) for column in values], [low for low, _ in ends], [high for _, high in ends]


def pool(records: Sequence[RunRecord]) -> list[Setting]:
    """The settings among ``records``, in the order in which they come; see ``groups_of`` for what makes a setting.

    Runs of one seed under several names are no seeds of one setting: each stays a row of its own.
    """
    pooled: list[Setting] = []
    for group in groups_of(records).values():
        name = SEED.sub("", plain(group[0].name)) or plain(group[0].method)
        distinct = len({str(run.config.get("seed")) for run in group}) == len(group)
        pooled += [_setting(name, group)] if distinct else [_setting(run.name, [run]) for run in group]
    return pooled


def _setting(name: str, runs: Sequence[RunRecord]) -> Setting:
    first = runs[0]
    several = len(runs) > 1
    states = {str(run.status.get("state") or "") for run in runs}
    worst = next((state for state in STATES if state in states), "")
    return Setting(
        name=name if several else first.name,
        path=first.path,
        config=first.config,
        results=_means(runs) if several else first.results,
        metrics=first.metrics,
        samples=first.samples,
        manifest=first.manifest,
        status=next((run.status for run in runs if run.status.get("state") == worst), first.status),
        activations=first.activations,
        runs=tuple(runs),
    )


def _means(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Means and intervals of numbers; of texts the first that is not empty."""
    pooled: dict[str, Any] = {}
    for key in dict.fromkeys(key for run in runs for key in run.results if not key.endswith(ENDS)):
        numbers = [value for run in runs if (value := run.number(key)) is not None]
        texts = [text for run in runs if isinstance(text := run.results.get(key), str) and text]
        if numbers:
            pooled[key] = mean_of(numbers)
            pooled |= {f"{key}{end}": value for end, value in zip(ENDS, ends_of(numbers), strict=True) if len(numbers) > 1}
        elif texts:
            pooled[key] = texts[0]
    return pooled


def mean_of(values: Sequence[float]) -> float:
    """Mean of numbers, of which some may be infinite."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values) / len(values)


def ends_of(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the 95 % bootstrap interval of the mean; least and largest where resampling makes no sense."""
    if len(set(values)) == 1 or not all(map(math.isfinite, values)):
        return min(values), max(values)
    low, high = bootstrap_interval(list(values), RESAMPLES, seed=0)
    return float(low), float(high)
