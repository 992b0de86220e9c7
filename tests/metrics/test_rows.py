from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from unlearn.metrics import AnswerAccuracy, ExactMemorisation, Perplexity, Probability, RowMean

ROWS = 5
LENGTHS = (2, 4, 1, 3, 5)


class Plain(RowMean):
    key = "plain"

    def update(self, values_B: torch.Tensor) -> None:
        self.add(values_B)


def test_mean_leaves_out_nan_and_detaches() -> None:
    metric = Plain()
    metric.update(torch.tensor([1.0, torch.nan, 4.0], requires_grad=True))
    metric.update(torch.tensor([4.0]))
    assert metric.compute().item() == pytest.approx(3.0)
    assert not metric.compute().requires_grad


def test_states_carry_the_key() -> None:
    assert set(Plain()._defaults) == {"plain_sum", "plain_rows"}


def batch(rows: range) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of different length: a mean of ranks' means would be wrong."""
    parts = []
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        logits_AV = torch.randn(LENGTHS[row], 3, generator=generator, dtype=torch.float64)
        parts.append((logits_AV, torch.randint(0, 3, (LENGTHS[row],), generator=generator)))
    row_A = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([LENGTHS[row] for row in rows]))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), row_A


def measure(rows: range) -> list[float]:
    metrics = (Probability(), ExactMemorisation(), Perplexity(), AnswerAccuracy())
    logits_AV, targets_A, row_A = batch(rows)
    metrics[0].update(logits_AV, targets_A, row_A)
    metrics[1].update(logits_AV, targets_A, row_A)
    metrics[2].update(logits_AV, targets_A)
    metrics[3].update(["yes" if row < 2 else "no" for row in rows], ["yes"] * len(rows))
    return [metric.compute().item() for metric in metrics]


def worker(rank: int, port: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    values = measure(range(3) if rank == 0 else range(3, ROWS))
    torch.save(values, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    expected = measure(range(ROWS))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, abs=1e-6)
