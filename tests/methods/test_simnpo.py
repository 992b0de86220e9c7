from __future__ import annotations

import doctest
import math

import pytest
import torch

from tests.oracles.load import oracle, stacked
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.tokens import answer_logits, row_mean, token_mean, token_nll
from unlearn.methods import simnpo
from unlearn.methods.simnpo import SimNPOConfig, simnpo_loss


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def per_token(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logits_AV, targets_A, row_A = answer_logits(logits_BTV, labels_BT)
    return row_mean(token_nll(logits_AV, targets_A), row_A, len(labels_BT))


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(simnpo)
    assert result.attempted >= 1
    assert result.failed == 0


def test_value_and_gradients_agree_with_open_unlearning() -> None:
    data = oracle("losses")
    expected = data["losses"]["SimNPO"]
    (forget, labels), (kept, kept_labels) = stacked(data["inputs"]["forget"]), stacked(data["inputs"]["holdout"])
    forget.requires_grad_(), kept.requires_grad_()
    kept_AV, targets_A, _ = answer_logits(kept, kept_labels)
    forget_term = simnpo_loss(per_token(forget, labels), expected["beta"], expected["delta"])
    total = expected["gamma"] * forget_term + expected["alpha"] * token_mean(token_nll(kept_AV, targets_A))
    total.backward()
    assert total.item() == pytest.approx(expected["loss"], abs=1e-6)
    assert forget.grad is not None
    assert kept.grad is not None
    assert forget.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_forget"], rel=1e-6, abs=1e-12)
    torch.testing.assert_close(forget.grad[0], torch.tensor(expected["grad_forget_row0"], dtype=torch.float64), atol=1e-12, rtol=1e-6)
    assert kept.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_retain"], abs=1e-6)


def test_by_hand_with_a_margin() -> None:
    def one(nll: float) -> float:
        return (2 / 2.5) * math.log1p(math.exp(-(2.5 * nll - 0.5)))

    loss = simnpo_loss(torch.tensor([0.2, 1.5], dtype=torch.float64), beta=2.5, margin=0.5)
    assert loss.item() == pytest.approx((one(0.2) + one(1.5)) / 2, rel=1e-12)


def test_open_unlearning_takes_the_margin_inside_the_product_with_beta() -> None:
    nll_B, delta = torch.tensor([0.2, 1.5], dtype=torch.float64), 0.3
    theirs = (-torch.nn.functional.logsigmoid(2.5 * (nll_B - delta)) * 2 / 2.5).mean()
    assert simnpo_loss(nll_B, 2.5, margin=2.5 * delta).item() == pytest.approx(theirs.item(), rel=1e-12)


def test_the_loss_is_the_formula_on_the_stock_model(made: Toy) -> None:
    batch = made.batch()
    logits = made.lm(input_ids=batch["forget"].input_ids_BT, attention_mask=batch["forget"].attention_mask_BT).logits
    expected = simnpo_loss(per_token(logits, batch["forget"].labels_BT), 0.3, 0.1)
    out = made.method("simnpo", beta=0.3, margin=0.1, forget_weight=0.5, retain_weight=2.0).loss(made.lm, batch)
    assert out.terms["forget"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert out.total.item() == pytest.approx(0.5 * expected.item() + 2 * out.terms["retain"].item(), rel=1e-5)


def test_training_on_it_makes_likely_answers_unlikely(made: Toy) -> None:
    lm, method = made.ready("simnpo", beta=0.5, retain="none")
    optimizer = torch.optim.Adam([p for p in lm.parameters() if p.requires_grad], lr=1e-3)
    seen = []
    for _ in range(6):
        optimizer.zero_grad()
        out = method.loss(lm, {"forget": made.batch()["forget"]})
        seen.append(out.terms["forget"].item())
        out.total.backward()
        optimizer.step()
    assert seen[-1] < 0.9 * seen[0]


@pytest.mark.parametrize(
    ("key", "value"), [("beta", -1.0), ("margin", float("nan")), ("margin", float("inf")), ("forget_weight", -1.0), ("retain", "js")]
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        SimNPOConfig(name="simnpo", **{key: value})
