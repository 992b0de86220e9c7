from __future__ import annotations

import math

import pytest
import torch

from tests.oracles.agree import agrees, side
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.tokens import answer_logits, token_nll
from unlearn.methods.satimp import SatImpConfig, satimp_loss
from unlearn.methods.wga import wga_loss


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_by_hand() -> None:
    nll_A = -torch.tensor([0.5, 0.75]).log()
    expected = -(0.5**3 * 0.5**2 * math.log(2) + 0.75**3 * 0.25**2 * math.log(4 / 3)) / 2
    assert satimp_loss(nll_A, 3.0, 2.0).item() == pytest.approx(expected)


def test_value_and_gradient_are_the_published_ones() -> None:
    forget = side("forget")
    logits_AV, targets_A, _ = answer_logits(forget.logits_BTV, forget.labels_BT)
    agrees("SatImp_5_1", satimp_loss(token_nll(logits_AV, targets_A), 5.0, 1.0), forget)


def test_without_importance_it_is_weighted_gradient_ascent() -> None:
    nll_A = torch.tensor([0.0, 0.3, 2.0, 40.0])
    assert satimp_loss(nll_A, 2.0, 0.0).item() == pytest.approx(wga_loss(nll_A, 2.0).item(), rel=1e-6)


@pytest.mark.parametrize("beta2", [0.5, 1.0])
def test_gradient_is_the_weight_and_dies_at_both_ends(beta2: float) -> None:
    p_A = torch.tensor([1.0, 0.5, 1e-30], dtype=torch.float64)
    nll_A = -p_A.log()
    satimp_loss(nll_A.requires_grad_(), 1.0, beta2).backward()
    expected = torch.tensor([0.0, -0.5 * 0.5**beta2 / 3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(nll_A.grad, expected, rtol=0, atol=1e-12)


def test_a_sure_token_keeps_its_small_weight_in_float32() -> None:
    nll_A = torch.tensor([1e-9], requires_grad=True)
    satimp_loss(nll_A, 1.0, 1.0).backward()
    assert nll_A.grad is not None
    assert nll_A.grad.item() == pytest.approx(-1e-9, rel=1e-4)


def test_total_is_a_tenth_of_the_loss_plus_the_retain_term(made: Toy) -> None:
    out = made.method("satimp").loss(made.lm, made.batch())
    assert out.total.item() == pytest.approx((0.1 * out.terms["weighted"] + out.terms["retain"]).item(), rel=1e-6)
    assert out.terms["weighted"].item() != 0
    assert out.terms["retain"].item() > 0


@pytest.mark.parametrize(("key", "value"), [("beta1", -1.0), ("beta2", -1.0), ("beta2", float("inf")), ("retain_weight", -1.0)])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^method.{key} must be"):
        SatImpConfig(name="satimp", **{key: value})
