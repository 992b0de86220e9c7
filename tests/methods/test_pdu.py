from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from tests.forks import free_port
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.parts import Accumulation
from unlearn.functional.ranks import across_ranks
from unlearn.methods.base import MethodContext
from unlearn.methods.pdu import PDU, PDUConfig, dual_step, margin_loss
from unlearn.types import TokenBatch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def method(**settings: float) -> PDU:
    return PDU(PDUConfig(name="pdu", **settings), MethodContext(n_blocks=4))


def saw(pdu: PDU, *losses: float) -> None:
    """As if ``loss`` had met these retain losses in one optimiser step."""
    pdu.seen.copy_(torch.tensor([sum(losses), len(losses)]))


def test_margin_by_hand() -> None:
    logits_AV = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    assert margin_loss(logits_AV).item() == (3.0**2 + 0.0) / 2


def test_margin_does_not_see_a_shift_of_all_logits_and_its_gradient_lowers_the_largest() -> None:
    logits_AV = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
    margin_loss(logits_AV).backward()
    torch.testing.assert_close(logits_AV.grad, torch.tensor([[-2.0, -2.0, 4.0]]))  # 2 * 3 * (onehot - 1/3)
    torch.testing.assert_close(margin_loss(logits_AV + 7), margin_loss(logits_AV))


def test_margin_is_full_precision_for_half_precision_logits() -> None:
    assert margin_loss(torch.randn(2, 3).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("weight", "retain", "expected"), [(1.0, 0.8, 2.0), (1.0, 0.3, 1.0), (1.0, 0.2, 0.8), (0.1, 0.0, 0.0)])
def test_dual_step_by_hand(weight: float, retain: float, expected: float) -> None:
    assert dual_step(torch.tensor(weight), torch.tensor(retain), eta=2.0, eps=0.3).item() == pytest.approx(expected, abs=1e-6)


def test_total_is_the_lagrangian(made: Toy) -> None:
    pdu = made.method("pdu", forget_weight=0.5, retain_weight=3.0, eps=0.25)
    batch = made.batch()
    out = pdu.loss(made.lm, batch)
    labels = batch["forget"].labels_BT[:, 1:]
    logits = made.lm(input_ids=batch["forget"].input_ids_BT, attention_mask=batch["forget"].attention_mask_BT).logits[:, :-1]
    at_AV = logits[labels != -100]
    margin = ((at_AV.max(-1).values - at_AV.mean(-1)) ** 2).mean()
    assert out.terms["forget"].item() == pytest.approx(margin.item(), rel=1e-5)
    assert out.total.item() == pytest.approx(0.5 * margin.item() + 3.0 * (out.terms["retain"].item() - 0.25), rel=1e-5)
    assert out.terms["retain_weight"].item() == 3.0


def test_the_weight_waits_for_the_end_of_the_warm_up_then_follows_the_mean_of_the_step() -> None:
    pdu = method(retain_weight=1.0, eps=0.5, eta=2.0, warmup=0.4)
    weights = []
    for step in range(6):
        pdu.before_step(None, step, 10)
        saw(pdu, 0.5, 1.0)
        pdu.adjust_gradients(None)
        weights.append(pdu.weight.item())
    assert weights == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.5, 2.0])


def test_micro_batches_of_one_step_share_a_weight_which_moves_once_by_the_loss_of_the_whole_step(made: Toy) -> None:
    settings = {"retain_weight": 1.0, "eps": 0.0, "eta": 1.0, "warmup": 0.0}
    whole, pdu = made.method("pdu", **settings), made.method("pdu", **settings)
    batch = made.batch()
    parts = [{stream: TokenBatch(*(t[i::2] for t in rows)) for stream, rows in batch.items()} for i in range(2)]
    whole.before_step(made.lm, 0, 4)
    retain = whole.loss(made.lm, batch).terms["retain"].item()
    pdu.before_step(made.lm, 0, 4)
    step = Accumulation()
    with across_ranks():
        first = step.first(2, lambda i: pdu.loss(made.lm, parts[i]).terms, bool)
        second = step.next(1, lambda i: pdu.loss(made.lm, parts[i]).terms)
    assert [terms["retain_weight"].item() for terms in (first, second)] == [1.0, 1.0]
    pdu.adjust_gradients(made.lm)
    assert pdu.weight.item() == pytest.approx(1.0 + retain, rel=1e-6)
    pdu.before_step(made.lm, 1, 4)
    pdu.adjust_gradients(made.lm)
    assert pdu.weight.item() == pytest.approx(1.0 + retain, rel=1e-6)


def test_the_gradient_uses_the_weight_of_its_own_step(made: Toy) -> None:
    lm, pdu = made.ready("pdu", forget_weight=0.0, retain_weight=2.0, eta=1.0, warmup=0.0)
    plain, grad_diff = made.ready("grad_diff", forget_weight=0.0, retain_weight=2.0)
    pdu.before_step(lm, 0, 2)
    total = pdu.loss(lm, made.batch()).total
    pdu.adjust_gradients(lm)
    total.backward()
    grad_diff.loss(plain, made.batch()).total.backward()
    for p, q in zip(lm.parameters(), plain.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


def test_the_weight_survives_a_checkpoint() -> None:
    first, second = method(retain_weight=1.0, warmup=0.0), method(retain_weight=1.0, warmup=0.0)
    first.before_step(None, 0, 2)
    saw(first, 5.0)
    first.adjust_gradients(None)
    assert first.weight.item() == pytest.approx(5.7)
    second.load_state_dict(first.state_dict())
    assert second.weight.item() == first.weight.item()


def _rank(rank: int, port: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    pdu = method(retain_weight=1.0, eps=0.5, eta=1.0, warmup=0.0)
    pdu.before_step(None, 0, 2)
    saw(pdu, 1.0 + 2 * rank)
    pdu.adjust_gradients(None)
    torch.save(pdu.weight, Path(folder) / str(rank))
    distributed.destroy_process_group()


def test_processes_agree_on_the_weight(tmp_path: Path) -> None:
    multiprocessing.start_processes(_rank, (free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    assert [torch.load(tmp_path / str(rank), weights_only=True).item() for rank in range(2)] == [2.5, 2.5]


@pytest.mark.parametrize(("key", "value"), [("eps", -1.0), ("eta", -1.0), ("warmup", 1.5), ("retain", "none"), ("retain_weight", -1.0)])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^method.{key} must be"):
        PDUConfig(name="pdu", **{key: value})
