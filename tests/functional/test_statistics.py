from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, kstest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.oracles.load import column, oracle
from unlearn.errors import DataError
from unlearn.functional import statistics
from unlearn.functional.mmd import mmd2
from unlearn.functional.statistics import (
    benjamini_hochberg,
    bootstrap_interval,
    c2st_auc,
    c2st_null,
    fit_probe,
    forget_quality,
    mmd_permutation,
    total_variation,
)


def entities(rng: np.random.Generator, n: int, rows: int = 3, features: int = 6, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Activations of ``n`` entities, alike within an entity, and the entity of each row."""
    groups = np.repeat(np.arange(n), rows)
    return rng.normal(size=(n, features))[groups] + 0.3 * rng.normal(size=(n * rows, features)) + shift, groups


def two_sides(rng: np.random.Generator, n_a: int, n_b: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, groups = entities(rng, n_a + n_b)
    labels = (groups < n_a).astype(int)
    return x + shift * labels[:, None], labels, groups


# ---- bootstrap


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=60)
    reference = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    low, high = bootstrap_interval(values, n=9999, seed=0)
    assert low == pytest.approx(reference.low, abs=0.02)
    assert high == pytest.approx(reference.high, abs=0.02)


def test_interval_covers_the_mean_at_about_its_level() -> None:
    rng = np.random.default_rng(0)
    hits = [low <= 2.0 <= high for low, high in (bootstrap_interval(rng.normal(2.0, size=40), 400, seed) for seed in range(300))]
    assert 0.90 <= np.mean(hits) <= 0.985
    narrow = [low <= 2.0 <= high for low, high in (bootstrap_interval(rng.normal(2.0, size=40), 400, s, level=0.5) for s in range(300))]
    assert 0.40 <= np.mean(narrow) <= 0.60


def test_resampling_whole_entities_keeps_the_level_where_rows_do_not() -> None:
    rng = np.random.default_rng(1)
    by_entity, by_row = [], []
    for seed in range(200):
        groups = np.repeat(np.arange(30), 6)
        values = rng.normal(size=30)[groups] + 0.2 * rng.normal(size=180)
        for hits, unit in ((by_entity, groups), (by_row, None)):
            low, high = bootstrap_interval(values, 300, seed, groups=unit)
            hits.append(low <= 0.0 <= high)
    assert np.mean(by_entity) >= 0.88
    assert np.mean(by_row) <= 0.70


def test_entities_of_unlike_size_weigh_by_their_rows() -> None:
    values, groups = [1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"]
    assert bootstrap_interval(values, 4000, 0, groups=groups) == (0.0, 1.0)
    low, high = bootstrap_interval(values, 4000, 0, level=0.4, groups=groups)
    assert low == high == 0.25, "half of the resamples hold both entities"


def test_interval_is_deterministic_and_handles_many_rows() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    first = bootstrap_interval(values, 200, seed=3)
    assert first == bootstrap_interval(values, 200, seed=3)
    assert first != bootstrap_interval(values, 200, seed=4)
    assert first[1] - first[0] == pytest.approx(2 * 1.96 / np.sqrt(50_000), rel=0.2)


def test_no_interval_from_one_entity_or_from_nan() -> None:
    assert np.isnan(bootstrap_interval([0.0, 1.0], 100, 0, groups=["a", "a"])).all()
    assert np.isnan(bootstrap_interval([0.0, np.nan, 1.0], 100, 0)).all()


def test_interval_errors() -> None:
    with pytest.raises(DataError, match="values_N and groups must have one entry per row, and at least one; found values_N 2, groups 3"):
        bootstrap_interval([0.0, 1.0], 100, 0, groups=["a", "b", "c"])
    with pytest.raises(DataError, match="at least one"):
        bootstrap_interval([], 100, 0)


# ---- classifier two-sample test


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


# ---- maximum mean discrepancy


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


# ---- the rest


def test_probe_gives_probabilities_under_equal_priors() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-1, 1, size=(900, 1)), rng.normal(1, 1, size=(60, 1))])
    probe = fit_probe(x, np.repeat([0, 1], [900, 60]))
    assert probe.predict_proba([[0.0]])[0, 1] == pytest.approx(0.5, abs=0.08)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    reference.fit(x, np.repeat([0, 1], [900, 60]))
    np.testing.assert_allclose(probe.predict_proba(x), reference.predict_proba(x))


def test_probe_errors() -> None:
    with pytest.raises(DataError, match=r"two classes; found \[1\]"):
        fit_probe(np.ones((3, 2)), [1, 1, 1])
    with pytest.raises(DataError, match="x_NS must be finite; found 2 values that are not"):
        fit_probe(np.array([[np.nan, 1.0], [np.inf, 1.0]]), [0, 1])


def test_benjamini_hochberg_by_hand() -> None:
    p_values = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216]
    adjusted = benjamini_hochberg(p_values)
    assert adjusted.tolist() == pytest.approx([0.01, 0.04, 0.084, 0.084, 0.084, 0.1, 0.74 / 7, 0.216, 0.216, 0.216])
    order = np.random.default_rng(0).permutation(10)
    np.testing.assert_allclose(benjamini_hochberg(np.array(p_values)[order]), adjusted[order])


def test_forget_quality_equals_open_unlearning() -> None:
    metrics = oracle("metrics")["metrics"]
    ratios = column(metrics["truth_ratio_closer_to_1_better"]["value_by_index"], "score").numpy()
    p, statistic = forget_quality(ratios, metrics["ks_test"]["retain_scores"])
    assert p == pytest.approx(metrics["ks_test"]["agg_value"], abs=1e-6)
    grid = np.sort(np.concatenate([ratios, metrics["ks_test"]["retain_scores"]]))
    by_hand = max(abs(np.mean(ratios <= t) - np.mean(np.array(metrics["ks_test"]["retain_scores"]) <= t)) for t in grid)
    assert statistic == pytest.approx(by_hand)
    assert np.isnan(forget_quality([np.nan, 1.0], [1.0])).all()


def test_total_variation() -> None:
    assert total_variation({"a": 1, "b": 1}, {"a": 50, "b": 50}) == 0.0
    assert total_variation({"a": 3}, {"b": 2}) == 1.0
    assert total_variation({"a": 0.2, "b": 0.8}, {"a": 0.5, "c": 0.5}) == pytest.approx((0.3 + 0.8 + 0.5) / 2)
    with pytest.raises(DataError, match="count at least one answer; found 0 and 2"):
        total_variation({}, {"a": 2})
