"""Tests of one group of entities against another: chance where there is no difference, separated where there is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest, t

from unlearn.functional.indistinguishable import (
    Sample,
    auc_interval,
    auc_resamples,
    ks_findings,
    ks_interval,
    ks_p_values,
    ks_statistics,
    mahalanobis_percentiles,
    mean_interval,
    mmd_interval,
    student_interval,
)
from unlearn.functional.statistics import bootstrap_interval, mmd_permutation


def sample(rng: np.random.Generator, entities: int, shift: float = 0.0, features: int = 6, rows: int = 3) -> Sample:
    """Every entity has a place of its own, its rows lie around it."""
    centres = rng.normal(size=(entities, features)) + shift
    x = np.repeat(centres, rows, axis=0) + 0.1 * rng.normal(size=(entities * rows, features))
    return Sample(x, np.repeat([f"e{i}" for i in range(entities)], rows))


def test_means_by_hand() -> None:
    means = Sample(np.array([[1.0], [3.0], [10.0]]), np.array(["b", "b", "a"])).means()
    assert means.tolist() == [[10.0], [2.0]]


def test_columnwise_statistics_are_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)).round(1), rng.normal(size=(19, 5)).round(1)
    np.testing.assert_allclose(ks_statistics(a, b), [ks_2samp(a[:, s], b[:, s]).statistic for s in range(5)], atol=1e-12)


def test_columnwise_p_values_are_scipys() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 40)).round(1) + rng.normal(size=40), rng.normal(size=(15, 40)).round(1)
    expected = [ks_2samp(a[:, s], b[:, s]).pvalue for s in range(40)]
    assert len(set(np.round(expected, 9))) < 40, "columns share statistics"
    np.testing.assert_allclose(ks_p_values(a, b, ks_statistics(a, b)), expected, atol=1e-9)


def test_interval_of_few_areas_is_scipys_and_stays_in_range() -> None:
    areas = np.random.default_rng(0).uniform(0.3, 0.7, size=20).tolist()
    np.testing.assert_allclose(student_interval(areas), t.interval(0.95, 19, np.mean(areas), np.std(areas, ddof=1)))
    assert student_interval([0.9, 1.0, 1.0])[1] == 1.0
    assert student_interval([0.0, 0.1, 0.0])[0] == 0.0
    assert np.isnan(student_interval([0.5])).all()


def test_interval_of_twenty_areas_holds_the_next_one_where_percentiles_lose_it() -> None:
    rng = np.random.default_rng(0)
    student, percentiles = [], []
    for _ in range(2000):
        *areas, following = rng.normal(0.5, 0.1, size=21)
        for hits, (low, high) in ((student, student_interval(areas)), (percentiles, np.quantile(areas, [0.025, 0.975]))):
            hits.append(low <= following <= high)
    assert 0.93 <= np.mean(student) <= 0.965
    assert np.mean(percentiles) < 0.92


def test_interval_of_ten_entities_keeps_its_level_where_the_bootstrap_does_not() -> None:
    rng = np.random.default_rng(0)
    student, resampled = [], []
    for draw in range(1000):
        values = rng.uniform(size=10)
        for hits, (low, high) in ((student, mean_interval(values)), (resampled, bootstrap_interval(values, 200, draw))):
            hits.append(low <= 0.5 <= high)
    assert 0.935 <= np.mean(student) <= 0.965
    assert np.mean(resampled) < 0.93
    np.testing.assert_allclose(mean_interval(values), t.interval(0.95, 9, values.mean(), values.std(ddof=1) / np.sqrt(10)))
    assert np.isnan([*mean_interval(values[:1]), *mean_interval(np.array([np.nan, 0.5]))]).all()


def test_resamples_are_the_interval_and_repeat() -> None:
    rng = np.random.default_rng(0)
    target, other = sample(rng, 6), sample(rng, 20)
    areas = auc_resamples(target, other, 8, 5)
    assert len(areas) == 8
    assert all(0 <= area <= 1 for area in areas)
    assert auc_interval(target, other, 8, 5) == student_interval(areas)


def test_percentiles_are_uniform_even_where_the_cloud_is_hardly_known() -> None:
    """A mean over both halves would crowd around 0.5: the standard deviation of a uniform variable is 0.289."""
    ranks = []
    for draw in range(150):
        rng = np.random.default_rng(draw)
        ranks += mahalanobis_percentiles(sample(rng, 4, features=20, rows=1), sample(rng, 30, features=20, rows=1), draw).tolist()
    assert np.std(ranks) == pytest.approx(1 / np.sqrt(12), abs=0.015)
    assert np.mean(ranks) == pytest.approx(0.5, abs=0.04)


def test_shifted_entities_are_separated_by_every_test() -> None:
    rng = np.random.default_rng(1)
    target, other = sample(rng, 10, shift=3.0), sample(rng, 60)
    low, high = auc_interval(target, other, 100, 0)
    assert low > 0.9
    assert ks_findings(target, other)[0] == 1.0
    assert ks_interval(target, other, 50, 0)[0] > 0.5
    assert mahalanobis_percentiles(target, other, 0).min() > 0.9


def test_like_entities_come_out_as_chance() -> None:
    """Over 40 draws of like groups: the area's interval covers one half, hardly any latent differs, percentiles are uniform."""
    covered, shares, ranks = 0, [], []
    for draw in range(40):
        rng = np.random.default_rng(draw)
        target, other = sample(rng, 10), sample(rng, 60)
        low, high = auc_interval(target, other, 20, draw)
        covered += low <= 0.5 <= high
        shares.append(ks_findings(target, other)[0])
        ranks += mahalanobis_percentiles(target, other, draw).tolist()
    assert covered >= 36
    assert np.mean(shares) < 0.05
    assert kstest(ranks[::5], "uniform").pvalue > 0.01


def test_too_few_entities_and_features_that_never_move() -> None:
    one = Sample(np.zeros((2, 3)), np.array(["a", "a"]))
    other = Sample(np.zeros((8, 3)), np.array(list("bbccddee")))
    assert np.isnan(auc_interval(one, other, 10, 0)[0])
    assert ks_findings(one, other) == (0.0, 0.0)
    assert ks_interval(one, other, 5, 0) == (0.0, 0.0)
    assert np.isnan(mahalanobis_percentiles(other, one, 0)).all()


@pytest.mark.parametrize("n", [0])
def test_without_resamples_there_is_no_interval(n: int) -> None:
    rng = np.random.default_rng(0)
    assert np.isnan(auc_interval(sample(rng, 4), sample(rng, 8), n, 0)).all()
    assert np.isnan(ks_interval(sample(rng, 4), sample(rng, 8), n, 0)).all()


def test_the_interval_of_the_discrepancy_lies_around_it_and_apart_from_chance() -> None:
    rng = np.random.default_rng(3)
    far, other = sample(rng, 12, shift=2.0), sample(rng, 30)
    value, _ = mmd_permutation(far.x_NS, other.x_NS, far.groups_N, other.groups_N, n=9, seed=0)
    low, high = mmd_interval(far, other, 200, 0)
    assert low < value < high
    near = mmd_interval(sample(rng, 12), other, 200, 0)
    assert near[1] < low
