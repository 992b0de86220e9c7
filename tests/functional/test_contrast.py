"""Target against control: by hand, and against a bootstrap written out."""

import numpy as np
import pytest

from unlearn.errors import DataError
from unlearn.functional.contrast import cell_means, contrast


def test_each_side_counts_at_its_own_best_cell():
    target = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    control = np.array([[0.0, 1.0], [0.0, 0.0]])
    found = contrast(target, list("aabb"), control, list("cd"), n=0, seed=0)
    assert (found.target, found.control, found.excess, found.best) == (0.75, 0.5, 0.25, 1)
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_rows_that_were_not_tested_count_nowhere():
    hits = np.array([[np.nan, 1.0, 0.0], [np.nan, np.nan, np.nan]])
    means = cell_means(hits)
    assert means[0] == 0.5
    assert np.isnan(means[1])
    found = contrast(hits, list("abc"), np.zeros((2, 2)), list("de"), n=50, seed=0)
    assert found.target == 0.5
    assert found.best == 0


def test_the_interval_resamples_entities_and_looks_for_the_best_cell_anew():
    rng = np.random.default_rng(1)
    target, groups = rng.random((3, 12)).round(), [f"t{i // 3}" for i in range(12)]
    control, others = (rng.random((3, 10)) < 0.3).astype(float), [f"c{i // 2}" for i in range(10)]
    found = contrast(target, groups, control, others, n=20_000, seed=0)

    def best(hits, names, generator):
        entities = sorted(set(names))
        drawn = generator.choice(entities, size=len(entities))
        columns = [i for name in drawn for i, own in enumerate(names) if own == name]
        return hits[:, columns].mean(1).max()

    generator = np.random.default_rng(2)
    draws = [best(target, groups, generator) - best(control, others, generator) for _ in range(20_000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)
    assert found.low <= found.excess + 0.2


def test_two_sides_that_are_the_same_have_an_interval_around_zero():
    hits = (np.random.default_rng(0).random((2, 60)) < 0.3).astype(float)
    names = [str(i // 3) for i in range(60)]
    found = contrast(hits, names, hits, names, n=2000, seed=0)
    assert found.excess == 0
    assert found.low < 0 < found.high


def test_one_entity_has_no_interval():
    found = contrast(np.ones((1, 3)), ["a"] * 3, np.zeros((1, 2)), ["b", "c"], n=100, seed=0)
    assert found.excess == 1
    assert np.isnan(found.low)


@pytest.mark.parametrize(
    ("target", "groups", "control"),
    [
        (np.ones((1, 2)), ["a"], np.ones((1, 1))),
        (np.ones((2, 1)), ["a"], np.ones((1, 1))),
        (np.full((1, 1), np.nan), ["a"], np.ones((1, 1))),
    ],
)
def test_sides_that_do_not_fit_are_refused(target, groups, control):
    with pytest.raises(DataError, match="one hit for each"):
        contrast(target, groups, control, ["b"], n=0, seed=0)
