"""Tests of one group of entities against another: chance where there is no difference, separated where there is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest

from unlearn.functional.indistinguishable import (
    Sample,
    auc_interval,
    ks_findings,
    ks_interval,
    ks_statistics,
    mahalanobis_percentiles,
    mmd_interval,
)
from unlearn.functional.statistics import mmd_permutation


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
        low, high = auc_interval(target, other, 40, draw)
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
