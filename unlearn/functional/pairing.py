"""Comparing methods over seeds and entities: intervals, paired tests, ranks, the Pareto front. NumPy in, floats out.

A method's numbers are nested: one list of entities for each seed. Entities of one seed share one trained model, so they are resampled
within their seed, and seeds are resampled first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import permutation_test, rankdata

from unlearn.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
Nested = Sequence[Sequence[float]]
"""One list of entities' values for each seed."""

RESAMPLES = 9999
"""Sign flips of a paired test; all of them are tried where there are fewer."""


def nested_interval(values: Nested, n: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over seeds of the mean over entities.

    Two stages (Davison and Hinkley 1997, section 3.8): seeds are drawn with replacement, then entities within each drawn seed. With one
    seed it covers the entities only; with one entity in each seed it is the ordinary bootstrap over seeds.

    Args:
        values: finite values, one list for each seed, none of them empty.
        n: resamples, >= 1.
        seed: seed of the resampling.
        level: coverage, in (0, 1).

    Returns:
        ``(low, high)``; nan where there is only one value, or one that is not finite.

    Raises:
        DataError: there is nothing to resample.

    >>> nested_interval([[1.0, 1.0], [1.0]], n=100, seed=0)
    (1.0, 1.0)
    """
    rows = [np.asarray(row, dtype=np.float64) for row in values]
    if not rows or min(len(row) for row in rows) == 0:
        raise DataError(f"values must hold a seed, and each seed an entity; found {[len(row) for row in rows]}.")
    if sum(len(row) for row in rows) < 2 or not all(np.isfinite(row).all() for row in rows):
        return float("nan"), float("nan")
    rng, means = np.random.default_rng(seed), np.empty((n, len(rows)))
    drawn = rng.integers(len(rows), size=(n, len(rows)))
    for place in range(len(rows)):  # resample the entities of each seed as often as it was drawn
        hits_n, hits_s = np.nonzero(drawn == place)
        row = rows[place]
        means[hits_n, hits_s] = row[rng.integers(len(row), size=(len(hits_n), len(row)))].mean(axis=1)
    low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p(values: Nested, reference: Nested, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of a paired permutation test: is the mean difference over all (seed, entity) pairs zero?

    Signs of the differences are flipped (``scipy.stats.permutation_test`` with ``permutation_type='samples'``), all 2^N ways where these
    are no more than ``resamples``, else at random. Pairs of one seed share two trained models, so that a small p with few seeds speaks
    about these models more than about their methods; the same test on one mean for each seed has no such weakness and little power (at
    best 2 / 2^seeds).

    Args:
        values: of the one method.
        reference: of the other, seed by seed and entity by entity the same.
        seed: seed of the flips.
        resamples: most flips, >= 1.

    Returns:
        In (0, 1]; 1 where there is one pair only or every difference is 0; nan where a value is not finite.

    Raises:
        DataError: the two do not pair up.

    >>> paired_p([[1.0], [1.0], [1.0], [1.0], [1.0]], [[0.0], [0.0], [0.0], [0.0], [0.0]])
    0.0625
    """
    if [len(row) for row in values] != [len(row) for row in reference] or not values:
        found = f"{[len(row) for row in values]} and {[len(row) for row in reference]}"
        raise DataError(f"values and reference must have the same seeds and entities, at least one; found {found}.")
    a, b = (np.concatenate([np.asarray(row, dtype=np.float64) for row in side]) for side in (values, reference))
    if not np.isfinite(a - b).all():
        return float("nan")
    if len(a) < 2 or not (a - b).any():
        return 1.0

    def difference(x: Array, y: Array, axis: int = -1) -> Array:
        return np.asarray(x.mean(axis=axis) - y.mean(axis=axis))

    rng = np.random.default_rng(seed)
    test = permutation_test((a, b), difference, permutation_type="samples", vectorized=True, n_resamples=resamples, batch=1000, rng=rng)
    return float(min(1.0, test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: those at or below alpha are findings at a family-wise error rate of alpha (Holm 1979); nan does not count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p == p)
    adjusted, highest = [float("nan")] * len(p_values), 0.0
    for done, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - done) * p))
        adjusted[place] = highest
    return adjusted


def mean_ranks(scores_MS: Sequence[Sequence[float]] | Array) -> list[float]:
    """Mean over seeds of each method's rank within the seed: 1 is the highest score, equal scores share their ranks' mean (Friedman 1937).

    Args:
        scores_MS: score of each method (rows) with each seed (columns); nan ranks last.

    >>> mean_ranks([[0.9, 0.8], [0.9, 0.1], [0.2, 0.5]])
    [1.25, 2.25, 2.5]
    """
    scores_MS = np.asarray(scores_MS, dtype=np.float64)
    if scores_MS.ndim != 2 or 0 in scores_MS.shape:
        raise DataError(f"scores_MS must hold a row for each method and a column for each seed; found shape {scores_MS.shape}.")
    ranks = rankdata(-np.where(np.isnan(scores_MS), -np.inf, scores_MS), axis=0)
    return [float(rank) for rank in ranks.mean(axis=1)]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better; higher is better everywhere, nan is worse than any number.

    >>> dominates([1.0, 0.5], [1.0, 0.4]), dominates([1.0, 0.5], [0.9, 0.6]), dominates([1.0], [1.0])
    (True, False, False)
    """
    x, y = (np.where(np.isnan(v := np.asarray(side, dtype=np.float64)), -np.inf, v) for side in (a, b))
    if x.shape != y.shape:
        raise DataError(f"points must have the same sides; found {x.shape} and {y.shape}.")
    return bool((x >= y).all() and (x > y).any())


def pareto_front(points_NK: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other point dominates; higher is better on every side.

    >>> pareto_front([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    [True, True, False]
    """
    return [not any(dominates(other, point) for other in points_NK) for point in points_NK]
