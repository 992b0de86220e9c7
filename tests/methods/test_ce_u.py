from __future__ import annotations

import math

import pytest
import torch

from tests.oracles.agree import agrees, side
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.tokens import answer_logits
from unlearn.methods.ce_u import CEU, CEUConfig, ce_u_loss, number_in_row


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_number_in_row_counts_anew_in_each_row() -> None:
    assert number_in_row(torch.tensor([1, 1, 4, 4, 4, 5])).tolist() == [0, 1, 0, 1, 2, 0]
    assert number_in_row(torch.tensor([], dtype=torch.long)).tolist() == []


def test_by_hand() -> None:
    logits_AV = torch.tensor([[0.5, 0.125, 0.375], [0.2, 0.2, 0.6]]).log()
    expected = -(0.25 * math.log(0.125) + 0.75 * math.log(0.375)) - (0.5 * math.log(0.2) + 0.5 * math.log(0.2))
    assert ce_u_loss(logits_AV, torch.tensor([0, 2]), torch.tensor([0, 1]), 0).item() == pytest.approx(expected / 2, rel=1e-6)


def test_value_and_gradient_are_the_published_ones() -> None:
    forget = side("forget")
    agrees("CEU_ignore1", ce_u_loss(*answer_logits(forget.logits_BTV, forget.labels_BT), skip=1), forget)


def test_gradient_at_the_logits_is_the_difference_of_prediction_and_target() -> None:
    p_V = torch.tensor([0.9, 0.06, 0.04])
    logits_AV = p_V.log()[None].requires_grad_()
    ce_u_loss(logits_AV, torch.tensor([0]), torch.tensor([0]), 0).backward()
    torch.testing.assert_close(logits_AV.grad, (p_V - torch.tensor([0.0, 0.6, 0.4]))[None])


def test_skip_leaves_out_the_first_tokens_of_each_row() -> None:
    torch.manual_seed(0)
    logits_AV, targets_A = torch.randn(5, 7), torch.tensor([1, 2, 3, 4, 5])
    kept = ce_u_loss(logits_AV[[1, 2, 4]], targets_A[[1, 2, 4]], torch.tensor([0, 0, 1]), 0)
    torch.testing.assert_close(ce_u_loss(logits_AV, targets_A, torch.tensor([0, 0, 0, 1, 1]), 1), kept)


def test_a_batch_of_which_nothing_is_left_counts_zero() -> None:
    logits_AV = torch.randn(2, 5, requires_grad=True)
    loss = ce_u_loss(logits_AV, torch.tensor([1, 2]), torch.tensor([0, 1]), 1)
    loss.backward()
    assert loss.item() == 0.0
    torch.testing.assert_close(logits_AV.grad, torch.zeros(2, 5))


def test_reads_forget_rows_only_unless_asked_to_retain(made: Toy) -> None:
    assert CEU.streams_of(CEUConfig(name="ce_u")) == ("forget",)
    batch = made.batch()
    alone = made.method("ce_u").loss(made.lm, {"forget": batch["forget"]})
    held = made.method("ce_u", retain="nll", retain_weight=2.0, forget_weight=0.5).loss(made.lm, batch)
    assert set(alone.terms) == {"forget"}
    assert held.total.item() == pytest.approx((0.5 * alone.total + 2.0 * held.terms["retain"]).item(), rel=1e-6)


@pytest.mark.parametrize(("key", "value"), [("skip", -1), ("forget_weight", -1.0), ("retain", "kll")])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^method.{key} must be"):
        CEUConfig(name="ce_u", **{key: value})
