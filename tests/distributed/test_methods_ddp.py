"""Two processes under DDP against one with the same batches: every method of the registry, and a whole run."""

from __future__ import annotations

import math

import pytest

from tests.distributed.comparison import (
    TOLERANCE,
    Found,
    Seen,
    differing,
    gradient_difference,
    logged,
    loss_difference,
    results,
    trained,
    weight_difference,
)
from tests.distributed.every_method import ALL, APART, CASES, HALF, HALF_PLAIN, STEPS, trained_methods

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return trained(tmp_path_factory.mktemp("every"))


def ended(found: Found, label: str) -> tuple[Seen, Seen, Seen]:
    """The case in one process and in the two, all of which came to the end."""
    seen = found.one[label], found.ranks[0][label], found.ranks[1][label]
    assert [each.get("error") for each in seen] == [None, None, None]
    return seen


def test_every_trained_method_of_the_registry_is_a_case() -> None:
    assert {case.method for case in CASES.values()} == set(trained_methods())


@pytest.mark.parametrize("label", CASES)
def test_two_processes_train_as_one_does(found: Found, label: str) -> None:
    one, *ranks = ended(found, label)
    assert len(one["terms"]) == STEPS * CASES[label].accumulate
    assert one["moved"] > 20 * TOLERANCE
    for seen in ranks:
        assert all(math.isfinite(value) for row in seen["terms"] for value in row.values())
        assert loss_difference(one, seen) <= TOLERANCE
        assert gradient_difference(one, seen) <= TOLERANCE
        assert weight_difference(one, seen) <= TOLERANCE
    assert weight_difference(*ranks) == 0.0


def test_two_processes_with_two_micro_batches_each_train_as_one_with_one(found: Found) -> None:
    """Rows of very different lengths in every quarter of a step; a loss that compares all rows with one another."""
    one, ranks = found.one["sae_guided"], ended(found, 'sae_guided {"accumulate": 2}')[1:]
    for seen in ranks:
        assert len(seen["terms"]) == 2 * STEPS
        for half in (0, 1):
            assert loss_difference(one, {**seen, "terms": seen["terms"][half::2]}) <= TOLERANCE
        assert gradient_difference(one, seen) <= TOLERANCE
        assert weight_difference(one, seen) <= TOLERANCE


@pytest.mark.parametrize("label", CASES)
def test_no_method_needs_more_than_plain_ddp(found: Found, label: str) -> None:
    assert {seen["strategy"] for seen in ended(found, label)[1:]} == {"DDPStrategy"}


@pytest.mark.parametrize("label", CASES)
def test_processes_take_turns_in_the_rows_of_one(found: Found, label: str) -> None:
    one, *ranks = ended(found, label)
    for step, whole in enumerate(one["rows"]):
        for stream, ids in whole.items():
            shares = [seen["rows"][step][stream] for seen in ranks]
            assert [i for pair in zip(*shares, strict=True) for i in pair] == ids
            if len(set(ids)) == len(ids):
                assert not set(shares[0]) & set(shares[1])


def test_the_rows_are_as_uneven_as_they_can_be(found: Found) -> None:
    """In one step one process has no question among its forget rows and the other has; in another neither has: nothing to prefer and
    no name to look at."""
    shares = [[set(row["forget"]) for row in seen["dpo"]["rows"]] for seen in found.ranks]
    statements = [[min(ids) >= 50 for ids in share] for share in shares]
    assert [sum(both) for both in zip(*statements, strict=True)] == [0, 1, 0, 2]


def test_means_of_each_process_would_not_do(found: Found) -> None:
    """The control: with every process counting its own tokens only, the same comparison fails by far."""
    one, first, _ = ended(found, APART.label)
    assert loss_difference(one, first) > 1000 * TOLERANCE
    assert weight_difference(one, first) > 10 * TOLERANCE


def test_ddp_looks_for_idle_weights_only_where_a_method_leaves_some(found: Found) -> None:
    one, *ranks = ended(found, HALF.label)
    assert {seen["strategy"] for seen in ranks} == {"DDPStrategy, find_unused_parameters"}
    assert max(weight_difference(one, seen) for seen in ranks) <= TOLERANCE
    assert all("parameters that were not used in producing the loss" in seen[HALF_PLAIN.label]["error"] for seen in found.ranks)
    assert len(ALL) == len(CASES) + 3


def test_a_run_on_two_devices_has_the_results_of_one(found: Found) -> None:
    one = results(found, "one")
    assert {"forget/accuracy", "retain/accuracy", "latent/c2st_auc", "generic/perplexity"} <= one.keys()
    assert differing(one, results(found, "two")) == {}


def test_a_run_on_two_devices_logs_what_one_logs(found: Found) -> None:
    one = logged(found, "one")
    assert {key for _, _, key in one} >= {"train/loss", "train/forget", "latent/p_unknown", "generic/perplexity"}
    assert differing(one, logged(found, "two")) == {}


def test_a_run_on_two_devices_leaves_the_same_files(found: Found) -> None:
    def files(name: str) -> set[str]:
        return {path.name for path in (found.runs / name).iterdir()}

    assert files("one") == files("two")
    assert (found.runs / "one" / "samples.jsonl").read_text() == (found.runs / "two" / "samples.jsonl").read_text()
