"""Rows dealt to two and three processes: values, and gradients once they are averaged, are those of one process with all rows."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from unlearn.functional.ranks import SharedRows, across_ranks, averaged, largest, masked_mean, mean, n_ranks, ratio, variance

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes rows [N, 3] and their places among the rows of a process."""


def pairs(x_N3: Tensor, place_N: Tensor) -> Tensor:
    """Compares every row with the one before it, so that their order matters."""
    rows = SharedRows(place_N).all(x_N3)
    return (rows[1:] - 2 * rows[:-1]).square().sum() if len(rows) else x_N3.sum()


LOSSES: dict[str, Loss] = {
    "mean": lambda x, place: mean(x.square()),
    "ratio": lambda x, place: ratio((x[:, 0] * x[:, 1]).sum(), (x[:, 2] > 0).sum()),
    "masked": lambda x, place: masked_mean(x.exp(), x > 0),
    "not a mean of means": lambda x, place: torch.log1p(mean(x.square())) * mean(x),
    "pairs": pairs,
    "weighted by a variance": lambda x, place: mean(x.square()) / variance(x).sum(),
}
N = 12
KEPT = {"all": range(N), "few": (0, 1, 3, 4, 6, 9, 10), "one process has none": (0, 2, 4, 6, 8, 10), "none": ()}


def leaf() -> Tensor:
    """The weight that the rows are made with."""
    return torch.tensor([0.5, -1.0, 2.0], requires_grad=True)


def data() -> Tensor:
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(0))


def outcome(loss: Loss, kept: list[int], rank: int, size: int) -> tuple[Tensor, Tensor]:
    """Value, and gradient averaged over the processes."""
    weight = leaf()
    mine = torch.tensor([i for i in kept if i % size == rank], dtype=torch.long)
    value = loss(data()[mine] * weight, mine // size)
    value.backward()
    gradient = torch.zeros(3) if weight.grad is None else weight.grad
    if size > 1:
        dist.all_reduce(gradient)
    return value.detach(), gradient / size


def usable(name: str, kept: str) -> bool:
    return not (name == "weighted by a variance" and kept == "none")


def worker(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    with across_ranks():
        found = {
            f"{name}/{k}": outcome(loss, list(v), rank, size) for name, loss in LOSSES.items() for k, v in KEPT.items() if usable(name, k)
        }
        extra = {
            "largest": torch.tensor(largest(rank, torch.device("cpu"))),
            "averaged": averaged({"a": torch.tensor(float(rank)), "b": torch.ones((), requires_grad=True)})["a"],
            "ranks": torch.tensor(n_ranks()),
        }
    outside = {"outside": mean(torch.tensor([float(rank)])), "ranks outside": torch.tensor(n_ranks())}
    torch.save({"found": found, **extra, **outside}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder, context = tmp_path_factory.mktemp("ranks"), multiprocessing.get_context("fork")
    ranks = [context.Process(target=worker, args=(rank, request.param, folder)) for rank in range(request.param)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
    assert [rank.exitcode for rank in ranks] == [0] * request.param
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kept", KEPT)
def test_value_and_gradient_are_those_of_one_process(seen: list[dict], name: str, kept: str) -> None:
    if not usable(name, kept):
        assert f"{name}/{kept}" not in seen[0]["found"]
        return
    value, gradient = outcome(LOSSES[name], list(KEPT[kept]), 0, 1)
    assert torch.isfinite(value)
    for rank in seen:
        torch.testing.assert_close(rank["found"][f"{name}/{kept}"][0], value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rank["found"][f"{name}/{kept}"][1], gradient, rtol=1e-5, atol=1e-6)


def test_numbers_that_processes_agree_on(seen: list[dict]) -> None:
    size = len(seen)
    assert [int(rank["largest"]) for rank in seen] == [size - 1] * size
    assert [float(rank["averaged"]) for rank in seen] == [(size - 1) / 2] * size


def test_outside_the_context_every_process_is_by_itself(seen: list[dict]) -> None:
    assert [float(rank["outside"]) for rank in seen] == list(range(len(seen)))
    assert {int(rank["ranks outside"]) for rank in seen} == {1}
    assert {int(rank["ranks"]) for rank in seen} == {len(seen)}


def test_one_process_inside_the_context_is_as_it_is_outside() -> None:
    with across_ranks():
        assert n_ranks() == 1
        assert mean(torch.tensor([1.0, 2.0])) == 1.5
        assert SharedRows(torch.tensor([0, 3])).own_N.tolist() == [0, 1]


def test_half_precision_is_summed_in_full() -> None:
    assert mean(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert masked_mean(torch.ones(2, dtype=torch.float16), torch.tensor([True, False])).dtype == torch.float32
