"""A step in one micro-batch and the same step in several: the same loss, gradient and weights, whatever the rows' lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.distributed.every_method import CASES, STEPS, Case, train, uneven_data
from tests.toys import Toy, toy
from unlearn.functional.parts import MOST, Accumulation, Parts, parts
from unlearn.functional.ranks import SharedRows, across_ranks, largest, mean, n_shares, variance

TOLERANCE = 1e-5
QUICK = ("grad_diff", "sae_guided", 'sae_guided {"position": "both", "retain_noise": 0.5}', "pdu", "rep_noise")
"""Means of tokens; pairs of rows; noise by the spread of all rows; a weight that moves with the loss; rows as wide as the widest."""
EQUAL = [
    pytest.param(label, marks=() if label in QUICK else pytest.mark.slow)
    for label, case in CASES.items()
    if case.strategy == "auto" and case.accumulate == 1
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), data=uneven_data())


def gaps(one: Mapping[str, Any], several: Mapping[str, Any], n: int) -> dict[str, float]:
    """Largest differences: of a logged term in any micro-batch, of a gradient's length (both relative where above 1), and, as a root mean
    square, of the weights: AdamW moves a weight by the learning rate even where its gradient is rounding."""
    assert len(several["terms"]) == n * len(one["terms"]) == n * STEPS
    pairs = [(a[key], b[key]) for place, b in enumerate(several["terms"]) for a in [one["terms"][place // n]] for key in a]
    assert [set(row) for row in several["terms"]] == [set(one["terms"][place // n]) for place in range(n * STEPS)]
    square = sum(float((one["weights"][name] - weight).square().sum()) for name, weight in several["weights"].items())
    return {
        "terms": max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs),
        "gradients": max(abs(a - b) / max(1.0, a) for a, b in zip(one["gradients"], several["gradients"], strict=True)),
        "weights": (square / sum(weight.numel() for weight in several["weights"].values())) ** 0.5,
    }


@pytest.mark.parametrize("label", EQUAL)
def test_a_step_in_two_micro_batches_is_the_step_in_one(made: Toy, label: str) -> None:
    """Every method; in each step both halves have rows of very different lengths."""
    one, two = train(made, CASES[label], 1), train(made, CASES[label]._replace(accumulate=2), 1)
    found = gaps(one, two, 2)
    assert found["terms"] <= TOLERANCE
    assert found["gradients"] <= TOLERANCE
    assert found["weights"] <= TOLERANCE / 10
    assert one["moved"] > 20 * TOLERANCE


@pytest.mark.parametrize("label", ["grad_diff", "sae_guided"])
def test_micro_batches_of_one_row_do_too(made: Toy, label: str) -> None:
    found = gaps(train(made, CASES[label], 1), train(made, CASES[label]._replace(accumulate=4), 1), 4)
    assert max(found["terms"], found["gradients"]) <= TOLERANCE


def test_means_of_each_micro_batch_would_not_do(made: Toy) -> None:
    """The control: with every micro-batch counting its own tokens only, the same comparison fails by far."""
    case = Case("grad_diff")
    one = train(made, case, 1)

    def alone(self: Accumulation, *args: Any) -> Any:
        return args[1](args[0] if isinstance(args[0], int) and len(args) == 2 else 0)

    with mock.patch.multiple(Accumulation, first=alone, next=alone):
        apart = train(made, case._replace(accumulate=2), 1)
    found = gaps(one, apart, 2)
    assert found["gradients"] > 1000 * TOLERANCE
    assert found["terms"] > 1000 * TOLERANCE


def whole_and_parts(loss: Any, rows: list[Tensor]) -> tuple[Tensor, Tensor, list[float], int]:
    """Gradients of a loss by a factor of all rows, in one piece and in pieces; the pieces' losses; and the passes that were needed."""
    factor = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with across_ranks():
        loss(torch.cat(rows) * factor).backward()
    one, factor.grad = factor.grad, None
    step, seen = Accumulation(), []

    def micro(index: int) -> Tensor:
        return loss(rows[index] * factor)

    with across_ranks():
        for index in range(len(rows)):
            found = step.first(len(rows), micro, bool) if index == 0 else step.next(index, micro)
            (found / len(rows)).backward()  # what Lightning does with the loss of a micro-batch
            seen.append(found.item())
    assert one is not None
    assert factor.grad is not None
    return one, factor.grad, seen, step._passes


def kernel(x_ND: Tensor) -> Tensor:
    """Distances of all pairs of rows about a common spread: three exchanges, the last of which rests on the others."""
    rows = SharedRows(torch.arange(len(x_ND)))
    scale = variance(x_ND).sum()
    all_MD = rows.all(x_ND / scale)
    return (-(all_MD[:, None] - all_MD[None]).square().sum(-1)).exp().mean() + mean(x_ND.square())


@pytest.mark.parametrize(("loss", "passes"), [(lambda x: mean(x.square()), 1), (lambda x: mean(x) ** 3 / mean(x.square()), 1), (kernel, 3)])
@pytest.mark.parametrize("sizes", [(4, 1), (2, 0, 3), (1, 1, 1, 5)])
def test_gradients_are_those_of_one_piece(loss: Any, passes: int, sizes: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(len(sizes))
    rows = [torch.randn(n, 3, generator=draws, dtype=torch.float64) for n in sizes]
    one, several, seen, needed = whole_and_parts(loss, rows)
    assert several == pytest.approx(one, rel=1e-9)
    assert seen == pytest.approx([seen[0]] * len(sizes), rel=1e-12)
    assert needed <= passes


def test_rows_keep_the_order_of_one_piece_and_the_largest_counts() -> None:
    rows = [torch.tensor([[1.0], [4.0]]), torch.zeros(0, 1), torch.tensor([[3.0]])]
    seen: list[tuple[list[float], list[int], int, int]] = []

    def micro(index: int) -> None:
        shared = SharedRows(torch.arange(len(rows[index])))
        seen.append((shared.all(rows[index])[:, 0].tolist(), shared.own_N.tolist(), largest(len(rows[index]), rows[0].device), n_shares()))

    step = Accumulation()
    with across_ranks():
        step.first(3, micro, bool)
        first = seen[-1]
        later = [(step.next(index, micro), seen[-1])[1] for index in (1, 2)]
    assert [first, *later] == [([1.0, 3.0, 4.0], own, 2, 3) for own in ([0, 2], [], [1])]


def test_a_loss_that_never_says_the_same_twice_ends() -> None:
    """Its words count as they are after the most passes there are."""
    calls: list[int] = []

    def restless(index: int) -> Tensor:
        calls.append(index)
        return mean(torch.tensor([float(len(calls))]))

    step = Accumulation()
    with across_ranks():
        step.first(2, restless, bool)
    assert calls == [0, 1] * MOST + [0]
    assert parts() is None


def test_outside_of_a_turn_nothing_is_exchanged() -> None:
    with Parts(2).turn(0):
        assert n_shares() == 1  # a mean that nobody asked to share
        assert mean(torch.tensor([1.0, 2.0])).item() == 1.5


def test_the_step_knows_its_micro_batches(made: Toy, tmp_path: Path) -> None:
    """What the module looks ahead to is what the loader serves."""
    from unlearn.config.schema import BatchConfig, SourceConfig
    from unlearn.data.module import UnlearningDataModule
    from unlearn.types import PromptFormat

    source = SourceConfig(source="jsonl", batch=BatchConfig(forget=4, retain=2, known=4, unknown=4))
    data = UnlearningDataModule(made.data, made.tokenizer, PromptFormat(), source, steps=3, seed=5, accumulate=2)
    data.active_streams = ("forget", "retain")
    served = [batch for batch, _, _ in data.train_dataloader()]
    ahead = [batch for step in range(3) for batch in data.micro_batches(step)]
    assert len(served) == len(ahead) == 6
    for a, b in zip(served, ahead, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(x, y) for stream in a for x, y in zip(a[stream], b[stream], strict=True))
