"""Are these activations those of unknown entities? Tests of one group of entities against another, each with an interval over entities.

Rows of one entity belong together (its templates are no independent draws): folds, permutations and resamples take whole entities.
numpy in, numbers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp, kstwobign, t
from sklearn import config_context
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from unlearn.functional.mmd import gaussian_kernel
from unlearn.functional.statistics import PENALTY, benjamini_hochberg

Array = np.ndarray[Any, np.dtype[Any]]

LEVEL = 0.05
"""False discovery rate at which a latent counts as a finding."""


@dataclass(frozen=True)
class Sample:
    """Rows of one side: ``x_NS`` [N, S], and the entity of each row."""

    x_NS: Array
    groups_N: Array

    def means(self) -> Array:
        """Mean of each entity's rows, [G, S]: independent draws where entities are."""
        index_N = np.unique(self.groups_N, return_inverse=True)[1].reshape(-1)
        sums_GS = np.zeros((index_N.max() + 1, self.x_NS.shape[1]))
        np.add.at(sums_GS, index_N, self.x_NS)
        return sums_GS / np.bincount(index_N)[:, None]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(values), [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def auc_resamples(target: Sample, other: Sample, n: int, seed: int) -> list[float]:
    """``n`` out-of-bag bootstrap resamples of the C2ST area, each in [0, 1].

    Each resample of entities fits the probe of ``c2st_auc`` and is scored on the entities it left out, so the spread holds what the choice
    of entities does to the fit as well as to the score; that of fixed scores is too small by a fifth.
    Empty for a side of fewer than two entities and for values that are not finite.
    """
    x = np.concatenate([target.x_NS, other.x_NS])
    y = np.concatenate([np.ones(len(target.x_NS), dtype=int), np.zeros(len(other.x_NS), dtype=int)])
    names = np.unique(target.groups_N), np.unique(other.groups_N)
    if min(map(len, names)) < 2 or not np.isfinite(x).all():
        return []
    entity = np.concatenate([np.searchsorted(names[0], target.groups_N), len(names[0]) + np.searchsorted(names[1], other.groups_N)])
    places = [np.flatnonzero(entity == g) for g in range(len(names[0]) + len(names[1]))]
    sides = np.arange(len(names[0])), np.arange(len(names[0]), len(places))
    areas: list[float] = []
    x, rng = StandardScaler().fit_transform(x), np.random.default_rng(seed)
    with config_context(assume_finite=True, skip_parameter_validation=True):
        while len(areas) < n:
            drawn = [rng.choice(side, size=len(side)) for side in sides]
            left = [np.setdiff1d(side, d) for side, d in zip(sides, drawn, strict=True)]
            if not all(map(len, left)):
                continue
            fitted = np.concatenate([places[g] for g in np.concatenate(drawn)])
            out = np.concatenate([places[g] for g in np.concatenate(left)])
            probe = LogisticRegression(C=PENALTY, max_iter=2000).fit(x[fitted], y[fitted])
            areas.append(float(roc_auc_score(y[out], probe.decision_function(x[out]))))
    return areas


def student_interval(areas: Sequence[float]) -> tuple[float, float]:
    """95 % interval of an area from few resamples of it: their mean give or take Student's quantile of their standard deviations.

    The outer quantiles of few draws are too near: those of 20 lie 1.65 standard deviations out. nan for fewer than two resamples.

    >>> low, high = student_interval([0.4, 0.5, 0.6])
    >>> round(low, 3), round(high, 3)
    (0.07, 0.93)
    """
    if len(areas) < 2:
        return float("nan"), float("nan")
    mean = float(np.mean(areas))
    half = float(t.ppf(0.975, len(areas) - 1) * np.std(areas, ddof=1))
    return max(0.0, mean - half), min(1.0, mean + half)


def auc_interval(target: Sample, other: Sample, n: int, seed: int) -> tuple[float, float]:
    """``student_interval`` of ``n`` resamples of the C2ST area (``auc_resamples``): 95 %, in [0, 1]."""
    return student_interval(auc_resamples(target, other, n, seed))


def ks_statistics(a_GS: Array, b_HS: Array) -> Array:
    """Two-sample Kolmogorov-Smirnov statistic of every column, [S], in [0, 1].

    >>> ks_statistics(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 2.0], [1.0, 3.0]]))
    array([0., 1.])
    """
    both = np.concatenate([a_GS, b_HS])
    order = both.argsort(axis=0)
    weight = np.repeat([1 / len(a_GS), -1 / len(b_HS)], [len(a_GS), len(b_HS)])
    apart = np.abs(weight[order].cumsum(0))
    ordered = np.take_along_axis(both, order, axis=0)
    apart[:-1][ordered[1:] == ordered[:-1]] = 0.0  # between equal values neither distribution function has stepped
    found: Array = apart.max(0)
    return found


def ks_p_values(a_GS: Array, b_HS: Array, statistics_S: Array) -> Array:
    """Two-sided p-value of every column, [S]: scipy's exact one. It depends on the statistic alone, so equal statistics are tested once.

    >>> a, b = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[5.0, 0.0], [6.0, 1.0]])
    >>> ks_p_values(a, b, ks_statistics(a, b)).round(4)
    array([0.3333, 1.    ])
    """
    _, first, index_S = np.unique(statistics_S.round(9), return_index=True, return_inverse=True)
    found: Array = np.array([ks_2samp(a_GS[:, s], b_HS[:, s]).pvalue for s in first])[index_S]
    return found


def ks_findings(target: Sample, other: Sample, level: float = LEVEL) -> tuple[float, float]:
    """(share of features that differ, mean statistic): Kolmogorov-Smirnov on entity means, Benjamini-Hochberg over the features.

    Features that are constant over both sides cannot differ and are left out.
    """
    a, b = target.means(), other.means()
    moves = np.ptp(np.concatenate([a, b]), axis=0) > 0
    if not moves.any():
        return 0.0, 0.0
    statistics_S = ks_statistics(a, b)[moves]
    adjusted = benjamini_hochberg(ks_p_values(a[:, moves], b[:, moves], statistics_S))
    return float((adjusted <= level).mean()), float(statistics_S.mean())


def ks_interval(target: Sample, other: Sample, n: int, seed: int, level: float = LEVEL) -> tuple[float, float]:
    """95 % bootstrap interval over entities of the share of features that differ (Kolmogorov's limiting p-values).

    An entity that is drawn twice makes steps of twice the height, so with few targets the interval lies high: whether anything differs is
    for ``ks_findings`` to say.
    """
    a, b = target.means(), other.means()
    moves = np.ptp(np.concatenate([a, b]), axis=0) > 0
    if not moves.any() or not n:
        return (0.0, 0.0) if n else (float("nan"), float("nan"))
    a, b = a[:, moves], b[:, moves]
    scale = np.sqrt(len(a) * len(b) / (len(a) + len(b)))
    rng, shares = np.random.default_rng(seed), []
    for _ in range(n):
        statistics_S = ks_statistics(a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))])
        shares.append(float((benjamini_hochberg(kstwobign.sf(scale * statistics_S)) <= level).mean()))
    return _interval(shares)


def mahalanobis_percentiles(target: Sample, other: Sample, seed: int) -> Array:
    """Where each target entity lies among the other entities by Mahalanobis distance from their mean, [G], in [0, 1]; uniform if alike.

    The others' entity means are halved by ``seed``: on one half mean and covariance (Ledoit-Wolf) are fitted, the distances of the other
    are what a target's is ranked among. One half of the targets meets the halves in the one order, the rest in the other; a mean over both
    orders would not be uniform but nearer to 0.5.
    """
    a, b = target.means(), other.means()
    if len(b) < 4:
        return np.full(len(a), np.nan)
    rng = np.random.default_rng(seed)
    order, turn_G = rng.permutation(len(b)), rng.permutation(len(a)) % 2
    halves = order[: len(b) // 2], order[len(b) // 2 :]
    ranks_G = np.empty(len(a))
    for turn, (fitted, ranked) in enumerate((halves, halves[::-1])):
        scaler = StandardScaler().fit(b[fitted])
        cloud = LedoitWolf().fit(scaler.transform(b[fitted]))
        among = np.sort(cloud.mahalanobis(scaler.transform(b[ranked])))
        if len(mine := a[turn_G == turn]):
            ranks_G[turn_G == turn] = (np.searchsorted(among, cloud.mahalanobis(scaler.transform(mine))) + 0.5) / (len(among) + 1)
    return ranks_G


def mean_interval(values_G: Array) -> tuple[float, float]:
    """95 % interval of the mean of one value in [0, 1] per entity: Student's, which ten entities do not make too narrow.

    A bootstrap over ten entities misses the true mean twice as often as it says. nan for fewer than two entities or values that are nan.
    Values that crowd at 0 or 1 but for a rare few (as P(unknown) does) have no good interval from ten entities, this one included.

    >>> low, high = mean_interval(np.array([0.2, 0.4, 0.6, 0.8]))
    >>> round(low, 3), round(high, 3)
    (0.089, 0.911)
    """
    if len(values_G) < 2 or not np.isfinite(values_G).all():
        return float("nan"), float("nan")
    mean, n = float(values_G.mean()), len(values_G)
    half = float(t.ppf(0.975, n - 1) * values_G.std(ddof=1) / np.sqrt(n))
    return max(0.0, mean - half), min(1.0, mean + half)


def mmd_interval(target: Sample, other: Sample, n: int, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval over entities of the squared maximum mean discrepancy (biased estimate, features standardised over both).

    An entity that is drawn twice is nearer to itself than any other could be, so the interval lies a little high.
    """
    both = np.concatenate([target.x_NS, other.x_NS])
    if not n or not np.isfinite(both).all():
        return float("nan"), float("nan")
    scaled = torch.from_numpy(StandardScaler().fit_transform(both.astype(np.float64)))
    names = np.unique(target.groups_N), np.unique(other.groups_N)
    entity = np.concatenate([np.searchsorted(names[0], target.groups_N), len(names[0]) + np.searchsorted(names[1], other.groups_N)])
    member = np.zeros((len(names[0]) + len(names[1]), len(entity)))
    member[entity, np.arange(len(entity))] = 1.0
    kernel_GG, rows_G = member @ gaussian_kernel(scaled, scaled).numpy() @ member.T, member.sum(1)
    rng, values = np.random.default_rng(seed), []
    for _ in range(n):
        a_G, b_G = np.zeros(len(rows_G)), np.zeros(len(rows_G))
        np.add.at(a_G, rng.integers(len(names[0]), size=len(names[0])), 1.0)
        np.add.at(b_G, len(names[0]) + rng.integers(len(names[1]), size=len(names[1])), 1.0)
        a_G, b_G = a_G / (a_G @ rows_G), b_G / (b_G @ rows_G)
        values.append(float(a_G @ kernel_GG @ a_G + b_G @ kernel_GG @ b_G - 2 * a_G @ kernel_GG @ b_G))
    return _interval(values)
