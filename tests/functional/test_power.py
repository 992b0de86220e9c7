"""Power of the recognition tests against simulated samples."""

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp, mannwhitneyu, norm

from unlearn.functional.power import auc_error, detectable_auc, detectable_ks, entities_for_auc, smallest_p

DRAWS = 400


def found_by_rank_test(shift: float, n: int, m: int, seed: int) -> float:
    """Share of draws in which a rank test at 5 % finds a normal sample that is shifted."""
    rng = np.random.default_rng(seed)
    found = mannwhitneyu(rng.normal(shift, 1, (DRAWS, n)), rng.normal(0, 1, (DRAWS, m)), axis=1, method="asymptotic")
    return float(np.mean(found.pvalue < 0.05))


@pytest.mark.parametrize(("n", "m"), [(10, 300), (20, 20), (50, 100)])
def test_the_smallest_auc_is_found_four_times_of_five(n: int, m: int) -> None:
    auc = detectable_auc(n, m)
    shift = float(norm.ppf(auc)) * math.sqrt(2)  # two normals of unit variance have area Phi(shift / sqrt 2)
    assert found_by_rank_test(shift, n, m, seed=n) == pytest.approx(0.8, abs=0.08)


def test_the_error_is_that_of_simulated_areas() -> None:
    rng, n, m, auc = np.random.default_rng(0), 30, 60, 0.75
    shift = float(norm.ppf(auc)) * math.sqrt(2)
    areas = mannwhitneyu(rng.normal(shift, 1, (2000, n)), rng.normal(0, 1, (2000, m)), axis=1).statistic / (n * m)
    assert auc_error(auc, n, m) == pytest.approx(np.std(areas), rel=0.12)


def test_a_difference_of_the_stated_distance_is_found_at_least_as_often_as_promised() -> None:
    rng, n = np.random.default_rng(1), 100

    def found(distance: float) -> float:
        shift = 2 * float(norm.ppf(0.5 + distance / 2))  # the largest gap between two shifted normals is 2 Phi(shift / 2) - 1
        return float(np.mean([ks_2samp(rng.normal(shift, 1, n), rng.normal(0, 1, n)).pvalue < 0.05 for _ in range(DRAWS)]))

    assert found(detectable_ks(n, n)) >= 0.8
    assert found(detectable_ks(n, n) / 2) < 0.5


def test_too_few_entities_detect_nothing() -> None:
    assert detectable_auc(2, 3) == detectable_auc(0, 50) == math.inf
    assert detectable_ks(0, 5) == math.inf
    assert entities_for_auc(0.8, 2) is None


def test_entities_needed_are_the_fewest() -> None:
    needed = entities_for_auc(0.8, 12)
    assert needed is not None
    assert detectable_auc(12, needed) <= 0.8 < detectable_auc(12, needed - 1)


def test_more_entities_see_smaller_differences() -> None:
    seen = [detectable_auc(n, 100) for n in (5, 10, 20, 40)]
    assert seen == sorted(seen, reverse=True)
    assert smallest_p(3, 3, 199) == 1 / 20
    assert smallest_p(20, 20, 199) == 1 / 200
