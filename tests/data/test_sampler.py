"""Which rows a step sees: independent of ranks and micro-batches, whole passes over the stream, and a restart anywhere."""

from __future__ import annotations

import pytest

from unlearn.data.sampler import StepSampler
from unlearn.errors import ConfigError


def sampler(n_rows=23, batch_size=8, steps=9, seed=5, stream="retain", **place):
    return StepSampler(n_rows, batch_size, steps, seed, stream, **place)


def test_every_row_comes_once_before_any_comes_again():
    drawn = [row for batch in sampler(steps=23) for row in batch]
    assert len(drawn) == 8 * 23
    for first in range(0, len(drawn), 23):
        assert sorted(drawn[first : first + 23]) == list(range(23))
    assert drawn[:23] != drawn[23:46]


def test_batch_larger_than_the_stream_repeats_whole_passes():
    (batch,) = sampler(n_rows=3, batch_size=9, steps=1)
    assert sorted(batch) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_share_out_the_same_global_batch(world_size, accumulate):
    whole = list(sampler())
    ranks = [list(sampler(rank=r, world_size=world_size, accumulate=accumulate)) for r in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [micro for rank in ranks for micro in rank[step * accumulate : (step + 1) * accumulate]]
        assert {len(part) for part in parts} == {8 // world_size // accumulate}
        assert sorted(row for part in parts for row in part) == sorted(batch)


def test_a_share_knows_the_rows_of_the_step():
    """Row i of process r's micro-batch m is row (i W + r) A + m of the step."""
    ranks = [list(sampler(rank=r, world_size=2, accumulate=2)) for r in range(2)]
    for step, batch in enumerate(sampler()):
        shares = {(r, m): ranks[r][step * 2 + m] for r in range(2) for m in range(2)}
        assert all(share.whole == batch for share in shares.values())
        assert all(share[i] == batch[(i * 2 + r) * 2 + m] for (r, m), share in shares.items() for i in range(len(share)))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_see_different_rows(world_size):
    """On a stream longer than all steps together no row is seen twice by anyone."""
    ranks = [list(sampler(n_rows=100, rank=r, world_size=world_size)) for r in range(world_size)]
    rows = [row for rank in ranks for batch in rank for row in batch]
    assert len(rows) == len(set(rows)) == 72


@pytest.mark.parametrize("start", [0, 1, 5, 17, 18])
def test_start_goes_on_where_an_uninterrupted_run_is(start):
    whole = list(sampler(accumulate=2, rank=1, world_size=2))
    resumed = sampler(accumulate=2, rank=1, world_size=2)
    resumed.start = start
    assert list(resumed) == whole[start:]
    assert len(resumed) == len(whole) == 18


def test_batch_is_a_pure_function_of_its_step():
    whole = list(sampler())
    fresh = sampler()
    assert [fresh.global_batch(step) for step in (8, 0, 4)] == [whole[8], whole[0], whole[4]]
    assert list(sampler(steps=20))[:9] == whole


def test_seed_and_stream_change_the_draw():
    assert list(sampler()) == list(sampler())
    assert len({tuple(sampler(**other).global_batch(0)) for other in ({}, {"seed": 6}, {"stream": "forget"})}) == 3


@pytest.mark.parametrize(("world_size", "accumulate"), [(3, 1), (1, 5), (4, 4)])
def test_uneven_shares_are_an_error(world_size, accumulate):
    with pytest.raises(ConfigError) as error:
        sampler(world_size=world_size, accumulate=accumulate)
    assert str(error.value) == (
        f"data.batch.retain must be a positive multiple of devices x trainer.accumulate ({world_size} x {accumulate}); found 8."
    )


def test_empty_stream_is_an_error():
    with pytest.raises(ConfigError, match=r"^data stream retain must be of at least one row; found 0\.$"):
        sampler(n_rows=0)
