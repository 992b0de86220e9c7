"""The two-sample tests of ``unlearn.functional.statistics``."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unlearn.errors import DataError
from unlearn.functional import statistics
from unlearn.functional.mmd import mmd2
from unlearn.functional.statistics import (
    c2st_auc,
    c2st_null,
    mmd_permutation,
)


def entities(rng: np.random.Generator, n: int, rows: int = 3, features: int = 6, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Activations of ``n`` entities, alike within an entity, and the entity of each row."""
    groups = np.repeat(np.arange(n), rows)
    return rng.normal(size=(n, features))[groups] + 0.3 * rng.normal(size=(n * rows, features)) + shift, groups


def two_sides(rng: np.random.Generator, n_a: int, n_b: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, groups = entities(rng, n_a + n_b)
    labels = (groups < n_a).astype(int)
    return x + shift * labels[:, None], labels, groups


def test_c2st_equals_scikit_learn_by_hand() -> None:
    x, labels, groups = two_sides(np.random.default_rng(0), 8, 14, shift=0.4)
    side = np.array([1] * 8 + [0] * 14)
    folds = [
        (np.flatnonzero(~np.isin(groups, out)), np.flatnonzero(np.isin(groups, out)))
        for _, out in StratifiedKFold(5, shuffle=True, random_state=3).split(side, side)
    ]
    scores = cross_val_predict(
        LogisticRegression(C=0.1, max_iter=2000), StandardScaler().fit_transform(x), labels, cv=folds, method="decision_function"
    )
    expected = np.mean([roc_auc_score(labels[out], scores[out]) for _, out in folds])
    assert c2st_auc(x, labels, groups, seed=3) == pytest.approx(expected, abs=1e-12)


def test_c2st_agrees_with_a_standardising_pipeline_on_stratified_groups() -> None:
    ours, theirs = [], []
    for seed in range(12):
        x, labels, groups = two_sides(np.random.default_rng(seed), 10, 20, shift=0.5)
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        theirs.append(cross_val_score(pipeline, x, labels, groups=groups, cv=folds, scoring="roc_auc").mean())
        ours.append(c2st_auc(x, labels, groups, seed=0))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.03)


def test_c2st_averages_one_half_for_one_distribution() -> None:
    areas = np.array([c2st_auc(*two_sides(np.random.default_rng(seed), 8, 16), seed=seed) for seed in range(100)])
    assert abs(areas.mean() - 0.5) < 3 * areas.std() / 10
    assert areas.std() > 0.05, "a single draw proves little: hence the null interval"


def test_c2st_finds_a_shift_and_ignores_units() -> None:
    x, labels, groups = two_sides(np.random.default_rng(0), 8, 16, shift=3.0)
    assert c2st_auc(x, labels, groups, seed=0) > 0.97
    scaled = x * np.logspace(-3, 3, x.shape[1]) + 50
    assert c2st_auc(scaled, labels, groups, seed=0) == pytest.approx(c2st_auc(x, labels, groups, seed=0), abs=1e-6)


def test_c2st_leaves_whole_entities_out() -> None:
    """Rows that only give away which entity they are of must not help."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    x = 10 * rng.normal(size=(40, 30))[groups] + 0.01 * rng.normal(size=(240, 30))
    areas = [c2st_auc(x, np.isin(groups, rng.permutation(40)[:20]).astype(int), groups, seed) for seed in range(10)]
    assert 0.35 < np.mean(areas) < 0.65


def test_c2st_works_with_fewer_entities_than_folds_and_with_names() -> None:
    rng = np.random.default_rng(0)
    x, labels, groups = two_sides(rng, 2, 9, shift=4.0)
    names = [f"entity {g}" for g in groups]
    assert c2st_auc(x, labels, names, seed=0) > 0.9
    constant = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    assert np.isfinite(c2st_auc(constant, labels, groups, seed=0))


def test_c2st_is_nan_where_it_cannot_be_measured() -> None:
    x, labels, groups = two_sides(np.random.default_rng(0), 1, 9)
    assert np.isnan(c2st_auc(x, labels, groups, seed=0))
    x, labels, groups = two_sides(np.random.default_rng(0), 4, 4)
    assert np.isnan(c2st_auc(np.where(x > 2, np.inf, x), labels, groups, seed=0))


def test_c2st_errors() -> None:
    x, labels, groups = two_sides(np.random.default_rng(0), 4, 4)
    with pytest.raises(DataError, match="groups_N must lie on one side each; found 8 with both labels"):
        c2st_auc(x, np.arange(len(x)) % 2, groups, seed=0)
    with pytest.raises(DataError, match=r"labels_N must be 0 or 1; found \[1, 2\]"):
        c2st_auc(x, labels + 1, groups, seed=0)
    with pytest.raises(DataError, match="found x_NS 24, labels_N 23, groups_N 24"):
        c2st_auc(x, labels[:-1], groups, seed=0)


def test_null_interval_covers_unknown_targets_and_not_known_ones() -> None:
    rng = np.random.default_rng(0)
    pool, groups = entities(rng, 36)
    low, high = np.quantile(c2st_null(pool, groups, n_a=8, n_b=28, draws=60, seed=0), [0.025, 0.975])
    assert low < 0.5 < high
    inside = []
    for seed in range(40):
        target, target_groups = entities(rng, 8)
        x, labels = np.concatenate([target, pool]), np.repeat([1, 0], [len(target), len(pool)])
        inside.append(low <= c2st_auc(x, labels, np.concatenate([target_groups + 100, groups]), seed) <= high)
    assert np.mean(inside) >= 0.85
    far, far_groups = entities(rng, 8, shift=2.0)
    x, labels = np.concatenate([far, pool]), np.repeat([1, 0], [len(far), len(pool)])
    assert c2st_auc(x, labels, np.concatenate([far_groups + 100, groups]), seed=0) > high


def test_null_draws_disjoint_groups_of_whole_entities(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, groups = entities(np.random.default_rng(0), 12)
    drawn = []

    def record(x: np.ndarray, labels: np.ndarray, groups_N: np.ndarray, seed: int) -> float:
        drawn.append([set(groups_N[labels]), set(groups_N[~labels])])
        np.testing.assert_array_equal(x, pool[np.isin(groups, groups_N)])
        return 0.5

    monkeypatch.setattr(statistics, "c2st_auc", record)
    c2st_null(pool, groups, 4, 7, draws=20, seed=0)
    assert all(len(a) == 4 and len(b) == 7 and not a & b for a, b in drawn)
    assert set.union(*(a for a, _ in drawn)) == set(range(12))


def test_null_is_deterministic_and_checks_the_pool() -> None:
    pool, groups = entities(np.random.default_rng(0), 12)
    first = c2st_null(pool, groups, 4, 8, draws=4, seed=1)
    np.testing.assert_array_equal(first, c2st_null(pool, groups, 4, 8, draws=4, seed=1))
    assert len(set(first)) > 1
    assert c2st_null(pool, groups, 4, 8, draws=0, seed=1).shape == (0,)
    with pytest.raises(DataError, match="at least n_a \\+ n_b = 13 entities; found 12"):
        c2st_null(pool, groups, 4, 9, draws=1, seed=0)


def test_mmd_value_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    (x, groups_x), (y, groups_y) = entities(rng, 5), entities(rng, 9, shift=0.5)
    value, _ = mmd_permutation(x, y, groups_x, groups_y, n=10, seed=0, standardise=False)
    assert value == pytest.approx(mmd2(torch.from_numpy(x), torch.from_numpy(y)).item(), abs=1e-12)
    both = StandardScaler().fit_transform(np.concatenate([x, y]))
    value, _ = mmd_permutation(7 * x + 1, 7 * y + 1, groups_x, groups_y, n=10, seed=0)
    assert value == pytest.approx(mmd2(torch.from_numpy(both[: len(x)]), torch.from_numpy(both[len(x) :])).item(), abs=1e-9)


def test_mmd_p_value_agrees_with_all_splits_of_entities() -> None:
    rng = np.random.default_rng(4)
    x, groups = entities(rng, 7, rows=2)
    groups = np.append(groups, 6)
    x = np.append(x, x[-1:] + 0.1, axis=0)
    x[np.isin(groups, [0, 1, 2])] += 0.8

    def value(side: tuple[int, ...]) -> float:
        in_x = np.isin(groups, side)
        return mmd2(torch.from_numpy(x[in_x]), torch.from_numpy(x[~in_x])).item()

    splits = np.array([value(side) for side in combinations(range(7), 3)])
    exact = (splits >= value((0, 1, 2)) - 1e-12).mean()
    in_x = groups < 3
    _, p = mmd_permutation(x[in_x], x[~in_x], groups[in_x], groups[~in_x], n=4000, seed=0, standardise=False)
    assert p == pytest.approx(exact, abs=0.03)


def test_mmd_p_values_are_uniform_under_the_null_and_small_under_a_shift() -> None:
    null, shifted = [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        (x, groups_x), (y, groups_y) = entities(rng, 6), entities(rng, 10)
        null.append(mmd_permutation(x, y, groups_x, groups_y, n=99, seed=seed)[1])
        shifted.append(mmd_permutation(x + 1.5, y, groups_x, groups_y, n=99, seed=seed)[1])
    assert kstest(null, "uniform").pvalue > 0.01
    assert np.mean(np.array(shifted) <= 0.05) > 0.9


def test_mmd_permuting_rows_instead_of_entities_would_be_wrong() -> None:
    rejected = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        (x, _), (y, _) = entities(rng, 6, rows=6), entities(rng, 10, rows=6)
        rejected.append(mmd_permutation(x, y, np.arange(36), np.arange(60), n=99, seed=seed)[1] <= 0.05)
    assert np.mean(rejected) > 0.5


def test_mmd_edge_cases() -> None:
    x, groups = entities(np.random.default_rng(0), 4)
    assert np.isnan(mmd_permutation(x[:3], x[3:], groups[:3], groups[3:], n=10, seed=0)).all()
    assert np.isnan(mmd_permutation(x * np.nan, x, groups, groups, n=10, seed=0)).all()
    assert mmd_permutation(x, x, groups, groups, n=99, seed=0)[1] == 1.0
    with pytest.raises(DataError, match="found y_MS 12, groups_y_M 11"):
        mmd_permutation(x, x, groups, groups[:-1], n=10, seed=0)
