from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import Metric

from tests.forks import free_port
from unlearn.functional.memorisation import probability
from unlearn.functional.scores import token_scores
from unlearn.functional.tokens import token_nll
from unlearn.metrics import (
    AliasMatch,
    AnswerAccuracy,
    AnswerMix,
    AnswerMixDistance,
    ChoiceAccuracy,
    ExactMemorisation,
    ExtractionStrength,
    ForgetQuality,
    ForgetQualityStatistic,
    MembershipAuc,
    MembershipRelDiff,
    ModelUtility,
    NgramEntropy,
    Perplexity,
    PrivLeak,
    Probability,
    RefusalRate,
    Repetition,
    Rouge1,
    RougeL,
    RowMean,
    TruthRatio,
)

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


KINDS = ("refusal", "correct", "plausible", "refusal", "degenerate")


def likelihood(rows: range) -> list[Metric]:
    """Metrics that are fed with the logits of the rows, or with what one pass keeps of them."""
    logits_AV, targets_A, row_A = batch(rows)
    nll_B = probability(token_nll(logits_AV, targets_A), row_A, len(rows)).log().neg()
    metrics: list[Metric] = [Probability(), ExactMemorisation(), ExtractionStrength(), TruthRatio()]
    for metric in metrics[:3]:
        metric.update(logits_AV, targets_A, row_A)
    metrics[3].update(nll_B, nll_B[:, None] + 0.1 * torch.tensor(list(rows))[:, None])
    metrics.append(Perplexity())
    metrics[-1].update(logits_AV, targets_A)
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        for metric in (MembershipAuc(attack), PrivLeak(0.4, attack), MembershipRelDiff(0.4, attack)):
            for row in rows:  # the one process has forget rows only, the other held-out ones
                metric.update(token_scores(*batch(range(row, row + 1)), 1, ["ab" * (row + 1)]), holdout=row > 2)
            metrics.append(metric)
    for quality in (ForgetQuality([0.5, 1.0, 2.0]), ForgetQualityStatistic([0.5, 1.0, 2.0])):
        if rows[0] == 0:
            quality.update(torch.tensor([0.1, 0.7, torch.nan, 3.0]))
        metrics.append(quality)
    return metrics


def texts(rows: range) -> list[Metric]:
    said = ["yes" if row < 2 else "no no no no no " * row for row in rows]
    metrics: list[Metric] = [AnswerAccuracy(), Rouge1("f1"), RougeL(), RougeL("f1", stem=True)]
    for metric in metrics:
        metric.update(said, ["yes no"] * len(rows) if metric is not metrics[0] else ["yes"] * len(rows))
    metrics += [RefusalRate(["no"]), NgramEntropy(), Repetition()]
    for metric in metrics[-3:]:
        metric.update(said)
    metrics.append(AliasMatch("begins"))
    metrics[-1].update(said, [["y", "no"]] * len(rows))
    metrics.append(ChoiceAccuracy())
    metrics[-1].update(torch.tensor([[1.0, 1.0 + row % 2] for row in rows]), torch.tensor([row // 3 for row in rows]))
    metrics.append(AnswerMixDistance())
    metrics[-1].update([KINDS[row] for row in rows], unknown=False)
    if rows[0] == 0:
        metrics[-1].update(["refusal", "correct", "off_topic"], unknown=True)
    metrics.append(ModelUtility(["a", "b"]))
    metrics[-1].update("a", torch.tensor([0.1 + row for row in rows]))
    if rows[0] == 0:
        metrics[-1].update("b", torch.tensor([0.25, torch.nan, 0.75]))
    return metrics


def measure(rows: range) -> dict[str, float]:
    mix = AnswerMix()
    mix.update([KINDS[row] for row in rows])
    values = {f"{i} {type(m).__name__}": m.compute().item() for i, m in enumerate([*likelihood(rows), *texts(rows)])}
    return values | {kind: share.item() for kind, share in mix.compute().items()}


def worker(rank: int, port: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    values = measure(range(3) if rank == 0 else range(3, ROWS))
    torch.save(values, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    mp.start_processes(worker, args=(free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    expected = measure(range(ROWS))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found == pytest.approx(expected, abs=1e-5)
        assert not any(math.isnan(value) for value in found.values())
