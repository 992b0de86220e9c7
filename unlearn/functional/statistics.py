"""Intervals and two-sample tests. NumPy in, floats out.

Rows of one entity are alike, so an entity is the unit everywhere: it is resampled, permuted and put into a fold as a whole. A
quantity that cannot be measured (fewer than two entities on a side, values that are not finite) is nan; arguments that contradict each
other are an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import false_discovery_control, ks_2samp
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from unlearn.errors import DataError
from unlearn.functional.mmd import WIDTHS, gaussian_kernel

Array = np.ndarray[Any, np.dtype[Any]]

FOLDS = 5
"""Folds of the classifier two-sample test; fewer where a side has fewer entities."""

PENALTY = 0.1
"""Inverse strength of the L2 penalty of every probe (scikit-learn's C)."""

BLOCK = 4_000_000
"""Most bootstrap indices held in memory at once."""


def _same_length(**arrays: Sequence[Any] | Array) -> None:
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{' and '.join(lengths)} must have one entry per row, and at least one; found {found}.")


def _numbered(groups: Sequence[Any] | Array) -> tuple[Array, int]:
    """Groups as numbers 0 .. G-1, in the order of their names, and G."""
    names, index_N = np.unique(np.asarray(groups), return_inverse=True)
    return index_N.reshape(-1), len(names)


def bootstrap_interval(
    values_N: Sequence[float] | Array, n: int, seed: int, level: float = 0.95, groups: Sequence[Any] | Array | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values_N: one value per row.
        n: resamples, >= 1.
        seed: seed of the resampling.
        level: coverage, in (0, 1). With few entities (some ten) the interval is a little too narrow, as percentile intervals are.
        groups: entity of each row; whole entities are resampled. None takes every row for itself.

    Returns:
        ``(low, high)``; nan for fewer than two groups or values that are not finite.

    Raises:
        DataError: no values, or ``groups`` of another length.

    >>> low, high = bootstrap_interval([0.0, 0.0, 1.0, 1.0], n=2000, seed=0, groups=["a", "a", "b", "b"])
    >>> low, high
    (0.0, 1.0)
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    groups = np.arange(len(values_N)) if groups is None else groups
    _same_length(values_N=values_N, groups=groups)
    index_N, n_groups = _numbered(groups)
    if n_groups < 2 or not np.isfinite(values_N).all():
        return float("nan"), float("nan")
    sums_G, counts_G = np.bincount(index_N, weights=values_N), np.bincount(index_N)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, n, block := max(1, BLOCK // n_groups)):
        drawn = rng.integers(n_groups, size=(min(block, n - start), n_groups))
        means.append(sums_G[drawn].sum(1) / counts_G[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fit_probe(x_NS: Array, y_N: Sequence[int] | Array) -> Pipeline:
    """Fitted linear probe: standardised features, logistic regression with penalty ``PENALTY``.

    Classes weigh the same however many rows they have, so ``predict_proba`` is a probability under equal priors.

    Raises:
        DataError: fewer than two classes, unequal lengths, or features that are not finite.

    >>> probe = fit_probe(np.array([[0.0], [1.0], [10.0], [11.0]]), [0, 0, 1, 1])
    >>> probe.predict([[2.0], [9.0]])
    array([0, 1])
    """
    x_NS, y_N = np.asarray(x_NS), np.asarray(y_N)
    _same_length(x_NS=x_NS, y_N=y_N)
    if len(classes := np.unique(y_N)) < 2:
        raise DataError(f"y_N must hold two classes; found {classes.tolist()}.")
    if not np.isfinite(x_NS).all():
        raise DataError(f"x_NS must be finite; found {int((~np.isfinite(x_NS)).sum())} values that are not.")
    classifier = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), classifier).fit(x_NS, y_N)


def c2st_auc(x_NS: Array, labels_N: Sequence[int] | Array, groups_N: Sequence[Any] | Array, seed: int) -> float:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv 1610.06545): can a linear probe tell the two sides apart?

    Logistic regression on features standardised over both sides, cross-validated over entities (each fold starts afresh: a warm start
    would remember the left-out labels); mean over folds of the area under the ROC curve on the entities that were left out. 0.5:
    indistinguishable; 1: always told apart. Two samples of one distribution average 0.5, with a wide spread: see ``c2st_null``.

    Args:
        x_NS: one row per activation; all rows of an entity are on one side.
        labels_N: 1 for one side, 0 for the other.
        groups_N: entity of each row.
        seed: seed of the folds.

    Returns:
        Area in [0, 1]; nan when a side has fewer than two entities or a value is not finite.

    Raises:
        DataError: unequal lengths, other labels than 0 and 1, or an entity on both sides.

    >>> x = np.repeat([[0.0], [0.1], [5.0], [5.1]], 2, axis=0)
    >>> c2st_auc(x, [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3], seed=0)
    1.0
    """
    x_NS, labels_N = np.asarray(x_NS), np.asarray(labels_N).astype(np.int64)
    _same_length(x_NS=x_NS, labels_N=labels_N, groups_N=groups_N)
    index_N, n_groups = _numbered(groups_N)
    if not set(np.unique(labels_N)) <= {0, 1}:
        raise DataError(f"labels_N must be 0 or 1; found {np.unique(labels_N)[:5].tolist()}.")
    ones_G, counts_G = np.bincount(index_N, weights=labels_N), np.bincount(index_N)
    if mixed := int(((ones_G > 0) & (ones_G < counts_G)).sum()):
        raise DataError(f"groups_N must lie on one side each; found {mixed} with both labels.")
    side_G = (ones_G > 0).astype(np.int64)
    folds = min(FOLDS, int(side_G.sum()), n_groups - int(side_G.sum()))
    if folds < 2 or not np.isfinite(x_NS).all():
        return float("nan")
    x_NS, areas = StandardScaler().fit_transform(x_NS), []
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for _, out_G in StratifiedKFold(folds, shuffle=True, random_state=seed).split(side_G, side_G):
            out_N = np.isin(index_N, out_G)
            probe = LogisticRegression(C=PENALTY, max_iter=2000).fit(x_NS[~out_N], labels_N[~out_N])
            areas.append(roc_auc_score(labels_N[out_N], probe.decision_function(x_NS[out_N])))
    return float(np.mean(areas))


def c2st_null(pool_NS: Array, groups_N: Sequence[Any] | Array, n_a: int, n_b: int, draws: int, seed: int) -> Array:
    """Areas that ``c2st_auc`` gives between two disjoint random groups of unknown entities: what "indistinguishable" looks like.

    Args:
        pool_NS: activations of unknown entities.
        groups_N: entity of each row.
        n_a: entities of the one group, as many as there are targets.
        n_b: entities of the other group.
        draws: number of draws, >= 0.
        seed: seed of draws and folds.

    Returns:
        ``draws`` areas; their 2.5 % and 97.5 % quantiles are the interval to compare with. It comes out too narrow from few draws: on the
        embedded world 8 to 15 % of new groups of unknown entities lie outside that of 100, 4 to 10 % outside that of 400
        (experiments/measurement).

    Raises:
        DataError: the pool has fewer than ``n_a + n_b`` entities, or unequal lengths.

    >>> areas = c2st_null(np.random.default_rng(0).normal(size=(40, 2)), np.arange(40), n_a=10, n_b=30, draws=3, seed=0)
    >>> areas.shape
    (3,)
    """
    pool_NS = np.asarray(pool_NS)
    _same_length(pool_NS=pool_NS, groups_N=groups_N)
    index_N, n_groups = _numbered(groups_N)
    if n_a + n_b > n_groups:
        raise DataError(f"pool_NS must hold at least n_a + n_b = {n_a + n_b} entities; found {n_groups}.")
    rng, areas = np.random.default_rng(seed), []
    for draw in range(draws):
        order_G = rng.permutation(n_groups)
        in_a_N, in_b_N = np.isin(index_N, order_G[:n_a]), np.isin(index_N, order_G[n_a : n_a + n_b])
        rows_N = in_a_N | in_b_N
        areas.append(c2st_auc(pool_NS[rows_N], in_a_N[rows_N], index_N[rows_N], seed + draw))
    return np.array(areas, dtype=np.float64)


def mmd_permutation(
    x_NS: Array,
    y_MS: Array,
    groups_x_N: Sequence[Any] | Array,
    groups_y_M: Sequence[Any] | Array,
    n: int,
    seed: int,
    standardise: bool = True,
    widths: Sequence[float] = WIDTHS,
) -> tuple[float, float]:
    """Squared maximum mean discrepancy and its permutation p-value (Gretton et al. 2012, JMLR 13), permuting whole entities.

    Args:
        x_NS: activations of the one side.
        y_MS: activations of the other side.
        groups_x_N: entity of each row of ``x_NS``.
        groups_y_M: entity of each row of ``y_MS``; an equal name on the other side is another entity.
        n: permutations, >= 1.
        seed: seed of the permutations.
        standardise: scale each feature by its mean and standard deviation over both sides together.
        widths: as in ``unlearn.functional.mmd.mmd2``.

    Returns:
        ``(mmd2, p)``: p = (1 + permutations at least as large) / (1 + n), in [1 / (1 + n), 1]; nan when a side has fewer than two
        entities or a value is not finite.

    Raises:
        DataError: unequal lengths.

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> mmd, p = mmd_permutation(x, x + 3, np.arange(20), np.arange(20), n=99, seed=0)
    >>> p
    0.01
    """
    _same_length(x_NS=x_NS, groups_x_N=groups_x_N)
    _same_length(y_MS=y_MS, groups_y_M=groups_y_M)
    (index_x_N, n_x), (index_y_M, n_y) = _numbered(groups_x_N), _numbered(groups_y_M)
    both = np.concatenate([np.asarray(x_NS, dtype=np.float64), np.asarray(y_MS, dtype=np.float64)])
    if min(n_x, n_y) < 2 or not np.isfinite(both).all():
        return float("nan"), float("nan")
    if standardise:
        both = StandardScaler().fit_transform(both)
    kernel = gaussian_kernel(torch.from_numpy(both), torch.from_numpy(both), widths).numpy()
    index, n_groups = np.concatenate([index_x_N, index_y_M + n_x]), n_x + n_y
    member = np.zeros((n_groups, len(index)))
    member[index, np.arange(len(index))] = 1.0
    kernel_GG, rows_G = member @ kernel @ member.T, member.sum(1)
    rng = np.random.default_rng(seed)
    sides = np.zeros((1 + n, n_groups))
    sides[0, :n_x] = 1.0
    for side in sides[1:]:
        side[rng.permutation(n_groups)[:n_x]] = 1.0
    values = _mmd2_of_sides(sides, kernel_GG, rows_G)
    as_large = int((values[1:] >= values[0] - 1e-12).sum())
    return float(values[0]), (1 + as_large) / (1 + n)


def _mmd2_of_sides(sides_PG: Array, kernel_GG: Array, rows_G: Array) -> Array:
    """Biased MMD^2 of each split: ``sides_PG`` is 1 on the groups of the one side; ``kernel_GG`` sums the kernel over pairs of rows."""
    other_PG = 1.0 - sides_PG
    a_P, b_P = sides_PG @ rows_G, other_PG @ rows_G
    left_PG, right_PG = sides_PG @ kernel_GG, other_PG @ kernel_GG
    within = (left_PG * sides_PG).sum(1) / a_P**2 + (right_PG * other_PG).sum(1) / b_P**2
    return within - 2 * (left_PG * other_PG).sum(1) / (a_P * b_P)


def benjamini_hochberg(p_values_N: Sequence[float] | Array) -> Array:
    """Adjusted p-values ``[N]``: those at or below q are findings at a false discovery rate of q (Benjamini and Hochberg 1995).

    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    array([0.03, 0.04, 0.04])
    """
    return np.asarray(false_discovery_control(np.asarray(p_values_N, dtype=np.float64), method="bh"))


def forget_quality(values_N: Sequence[float] | Array, reference_M: Sequence[float] | Array) -> tuple[float, float]:
    """``(p, statistic)`` of the two-sample Kolmogorov-Smirnov test between truth ratios of the model and of a model that never knew (TOFU).

    A high p means that the two cannot be told apart. p saturates near 0, so the statistic (in [0, 1], lower is closer) comes along.

    >>> p, statistic = forget_quality([0.1, 0.2, 0.3], [1.1, 1.2, 1.3])
    >>> round(p, 4), statistic
    (0.1, 1.0)
    """
    _same_length(values_N=values_N)
    _same_length(reference_M=reference_M)
    if not (np.isfinite(values_N).all() and np.isfinite(reference_M).all()):
        return float("nan"), float("nan")
    test = ks_2samp(values_N, reference_M)
    return float(test.pvalue), float(test.statistic)


def total_variation(counts_a: Mapping[str, float], counts_b: Mapping[str, float]) -> float:
    """Total variation distance between two mixes of kinds (of answers), given as counts or shares; in [0, 1].

    Raises:
        DataError: a mix is empty.

    >>> total_variation({"right": 8, "refusal": 2}, {"refusal": 5})
    0.8
    """
    total_a, total_b = sum(counts_a.values()), sum(counts_b.values())
    if min(total_a, total_b) <= 0:
        raise DataError(f"both mixes must count at least one answer; found {total_a} and {total_b}.")
    kinds = set(counts_a) | set(counts_b)
    return sum(abs(counts_a.get(kind, 0) / total_a - counts_b.get(kind, 0) / total_b) for kind in kinds) / 2
