from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.oracles.load import column, oracle
from unlearn.errors import DataError
from unlearn.functional.statistics import (
    benjamini_hochberg,
    bootstrap_interval,
    fit_probe,
    forget_quality,
    total_variation,
)


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
