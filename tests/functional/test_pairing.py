"""Statistics of a comparison, against scipy and cases worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import bootstrap, false_discovery_control, friedmanchisquare, ttest_rel

from unlearn.errors import DataError
from unlearn.functional.pairing import dominates, holm, mean_ranks, nested_interval, paired_p, pareto_front


def test_one_entity_a_seed_is_the_ordinary_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=12)
    low, high = nested_interval([[v] for v in values], n=20_000, seed=1)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.02)
    assert high == pytest.approx(theirs.high, abs=0.02)


def test_one_seed_is_the_bootstrap_over_its_entities() -> None:
    values = np.random.default_rng(3).normal(size=15)
    low, high = nested_interval([values], n=20_000, seed=1)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_variance_of_the_two_stages_adds_up() -> None:
    """Var of the resampled mean = var(seed means) / S + mean(within variance / E) / S: the interval follows from it."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 30)) + rng.normal(size=(40, 1))
    low, high = nested_interval(values.tolist(), n=8000, seed=0)
    variance = values.mean(1).var() / 40 + (values.var(1) / 30).mean() / 40
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.05)
    flat_low, flat_high = nested_interval([values.ravel().tolist()], n=4000, seed=0)
    assert high - low > 2 * (flat_high - flat_low)  # entities of a seed are alike: taking them for independent is far too sure


def test_the_interval_covers_the_truth() -> None:
    rng, hits = np.random.default_rng(5), 0
    for trial in range(200):
        values = 0.7 + 0.2 * rng.normal(size=(10, 1)) + 0.3 * rng.normal(size=(10, 8))
        low, high = nested_interval(values.tolist(), n=400, seed=trial)
        hits += low <= 0.7 <= high
    assert 170 <= hits <= 198


def test_nothing_to_resample() -> None:
    assert all(np.isnan(nested_interval([[0.5]], n=10, seed=0)))
    assert all(np.isnan(nested_interval([[0.5, float("nan")]], n=10, seed=0)))
    with pytest.raises(DataError, match=r"each seed an entity; found \[1, 0\]"):
        nested_interval([[1.0], []], n=10, seed=0)


def exact(differences: np.ndarray) -> float:
    """All sign flips, by hand."""
    means = [abs(np.mean(differences * signs)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return float(np.mean([mean >= abs(differences.mean()) - 1e-12 for mean in means]))


def test_few_pairs_are_flipped_in_every_way() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 8))
    assert paired_p([a.tolist()], [b.tolist()]) == pytest.approx(exact(a - b))
    assert paired_p([a[:3].tolist(), a[3:].tolist()], [b[:3].tolist(), b[3:].tolist()]) == pytest.approx(exact(a - b))


def test_many_pairs_agree_with_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    b = rng.normal(size=60)
    for shift in (0.0, 0.3, 0.6):
        a = b + shift + rng.normal(size=60)
        assert paired_p([a.tolist()], [b.tolist()]) == pytest.approx(ttest_rel(a, b).pvalue, abs=0.02)


def test_p_of_equal_single_and_unpaired_values() -> None:
    assert paired_p([[0.5, 0.5]], [[0.5, 0.5]]) == 1.0
    assert paired_p([[1.0]], [[0.0]]) == 1.0
    assert np.isnan(paired_p([[1.0, float("nan")]], [[0.0, 0.0]]))
    with pytest.raises(DataError, match="same seeds and entities"):
        paired_p([[1.0, 0.0]], [[1.0]])


def test_holm_by_hand_and_between_its_neighbours() -> None:
    """Example of Holm's paper's form: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, each at least the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, float("nan"), 0.9])[::2] == [1.0, 1.0]
    p = np.random.default_rng(0).uniform(size=9)
    adjusted = np.array(holm(p.tolist()))
    assert (adjusted <= np.minimum(1, 9 * p) + 1e-12).all()  # Bonferroni is never smaller
    assert (adjusted >= false_discovery_control(p, method="bh") - 1e-12).all()  # a false discovery rate never larger


def test_ranks_are_friedmans() -> None:
    scores = np.random.default_rng(2).normal(size=(4, 10))
    ranks = np.array(mean_ranks(scores))
    k, n = scores.shape
    statistic = 12 * n / (k * (k + 1)) * ((ranks - (k + 1) / 2) ** 2).sum()
    assert statistic == pytest.approx(friedmanchisquare(*scores).statistic)
    assert mean_ranks([[0.2, float("nan")], [0.1, 0.0]]) == [1.5, 1.5]
    with pytest.raises(DataError, match="a row for each method"):
        mean_ranks([1.0, 2.0])


def test_front_by_hand() -> None:
    """A is best on one side, B on the other, C lies between, D is below C, E was not measured on one side."""
    points = {"A": [1.0, 0.1], "B": [0.2, 1.0], "C": [0.6, 0.6], "D": [0.6, 0.5], "E": [0.9, float("nan")]}
    assert pareto_front(list(points.values())) == [True, True, True, False, False]
    assert dominates(points["C"], points["D"])
    assert dominates(points["A"], points["E"])
    assert pareto_front([[0.5, 0.5], [0.5, 0.5]]) == [True, True]
    with pytest.raises(DataError, match="same sides"):
        dominates([1.0], [1.0, 2.0])


def test_front_against_its_definition() -> None:
    points = np.random.default_rng(7).integers(0, 4, size=(40, 3)).astype(float)
    for point, front in zip(points, pareto_front(points.tolist()), strict=True):
        beaten = ((points >= point).all(1) & (points > point).any(1)).any()
        assert front != beaten
