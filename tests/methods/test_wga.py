from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.oracles.agree import agrees, side
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.tokens import answer_logits, token_nll
from unlearn.methods.gradient_ascent import gradient_ascent_loss
from unlearn.methods.wga import WGAConfig, wga_loss


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_by_hand() -> None:
    nll_A = -torch.tensor([0.5, 0.25]).log()
    assert wga_loss(nll_A, 2.0).item() == pytest.approx(-(0.25 * math.log(2) + 0.0625 * math.log(4)) / 2)


def test_value_and_gradient_are_the_published_ones() -> None:
    forget = side("forget")
    logits_AV, targets_A, _ = answer_logits(forget.logits_BTV, forget.labels_BT)
    agrees("WGA_beta1", wga_loss(token_nll(logits_AV, targets_A), 1.0), forget)


def test_beta_zero_is_gradient_ascent() -> None:
    nll_A = torch.tensor([0.0, 1.0, 30.0])
    assert wga_loss(nll_A, 0.0).item() == gradient_ascent_loss(nll_A).item()


def test_the_weight_has_no_gradient() -> None:
    nll_A = -torch.tensor([0.5, 0.25]).log()
    wga_loss(nll_A.requires_grad_(), 1.0).backward()
    torch.testing.assert_close(nll_A.grad, torch.tensor([-0.25, -0.125]))


def test_gradient_dies_with_the_probability_where_that_of_ascent_does_not() -> None:
    nll_A = torch.tensor([50.0], requires_grad=True)
    wga_loss(nll_A, 1.0).backward()
    assert nll_A.grad is not None
    assert abs(nll_A.grad.item()) < 1e-20


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_is_bounded_below_as_stated(beta: float) -> None:
    losses = torch.stack([wga_loss(nll[None], beta) for nll in torch.linspace(0, 30, 3001, dtype=torch.float64)])
    assert losses.min().item() == pytest.approx(-1 / (math.e * beta), abs=1e-4)


def test_total_is_the_weighted_ascent_plus_the_retain_term(made: Toy) -> None:
    batch = made.batch()

    def nll(stream: str) -> torch.Tensor:
        logits = made.lm(input_ids=batch[stream].input_ids_BT, attention_mask=batch[stream].attention_mask_BT).logits[:, :-1]
        labels = batch[stream].labels_BT[:, 1:]
        return cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")

    forget_A, retain_A = nll("forget"), nll("retain")
    out = made.method("wga", beta=0.5, forget_weight=2.0, retain_weight=3.0).loss(made.lm, batch)
    expected = -2.0 * ((-forget_A).exp().sqrt() * forget_A).mean() + 3.0 * retain_A.mean()
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert out.terms["forget"].item() == pytest.approx(-forget_A.mean().item(), rel=1e-5)


@pytest.mark.parametrize(("key", "value"), [("beta", -1.0), ("beta", float("inf")), ("forget_weight", -1.0), ("retain", "kll")])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^method.{key} must be"):
        WGAConfig(name="wga", **{key: value})
