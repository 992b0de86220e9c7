from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from tests.oracles.load import oracle, stacked
from unlearn.functional.divergence import js_divergence, kl_divergence
from unlearn.functional.tokens import answer_positions

GENERATOR = torch.Generator().manual_seed(0)
P_AV = 3 * torch.randn(7, 13, generator=GENERATOR, dtype=torch.float64)
Q_AV = 3 * torch.randn(7, 13, generator=GENERATOR, dtype=torch.float64)


def test_kl_equals_scipy_and_is_not_symmetric() -> None:
    expected = entropy(softmax(P_AV.numpy(), axis=1), softmax(Q_AV.numpy(), axis=1), axis=1)
    assert kl_divergence(P_AV, Q_AV).tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert not torch.allclose(kl_divergence(P_AV, Q_AV), kl_divergence(Q_AV, P_AV))
    assert kl_divergence(P_AV, P_AV + 5).tolist() == pytest.approx([0.0] * 7, abs=1e-12)


def test_js_equals_scipy_and_is_bounded() -> None:
    expected = jensenshannon(softmax(P_AV.numpy(), axis=1), softmax(Q_AV.numpy(), axis=1), axis=1) ** 2
    assert js_divergence(P_AV, Q_AV).tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    torch.testing.assert_close(js_divergence(P_AV, Q_AV), js_divergence(Q_AV, P_AV))
    apart = js_divergence(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]))
    assert apart.item() == pytest.approx(math.log(2), abs=1e-6)


def test_tokens_that_the_reference_rules_out_count_nothing() -> None:
    ref_AV, logits_AV = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    loss = kl_divergence(ref_AV, logits_AV).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert logits_AV.grad.isfinite().all()
    assert kl_divergence(torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])).isinf().all()


def test_gradient() -> None:
    assert torch.autograd.gradcheck(lambda q: kl_divergence(P_AV, q), (Q_AV.clone().requires_grad_(),))
    assert torch.autograd.gradcheck(lambda q: js_divergence(P_AV, q), (Q_AV.clone().requires_grad_(),))


def test_half_precision_is_raised() -> None:
    assert kl_divergence(P_AV.bfloat16(), Q_AV.bfloat16()).dtype == torch.float32
    assert js_divergence(P_AV.half(), Q_AV.half()).dtype == torch.float32
    assert kl_divergence(P_AV, Q_AV).dtype == torch.float64


def test_open_unlearning_retain_term_is_the_mean_over_all_positions() -> None:
    inputs, expected = oracle("losses")["inputs"], oracle("losses")["losses"]["KL_retain"]
    logits_BTV, labels_BT = stacked(inputs["holdout"])
    ref_BTV = torch.tensor(inputs["ref_logits"]["holdout"], dtype=torch.float64)
    loss = kl_divergence(ref_BTV.flatten(0, 1), logits_BTV.requires_grad_().flatten(0, 1)).mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    assert logits_BTV.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_retain"], abs=1e-6)
    at = answer_positions(labels_BT)
    ours = kl_divergence(ref_BTV[at], logits_BTV.detach()[at]).mean().item()
    assert abs(ours - expected["loss"]) > 1e-4, "averaging over answers only must not be the same thing"
