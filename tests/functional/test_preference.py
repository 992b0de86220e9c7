from __future__ import annotations

import doctest
import math

import pytest
import torch
from scipy.special import log_expit

from unlearn.functional import preference
from unlearn.functional.preference import preference_loss, sequence_logprob

LEAD_N = torch.linspace(-40, 40, 17, dtype=torch.float64)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(preference)
    assert result.attempted >= 4
    assert result.failed == 0


def test_sequence_logprob_by_hand_and_for_a_row_without_tokens() -> None:
    nll_A = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    assert sequence_logprob(nll_A, torch.tensor([0, 2, 2]), 4).tolist() == [-0.5, 0.0, -4.5, 0.0]


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.5])
def test_loss_equals_scipy(beta: float) -> None:
    expected = -(2 / beta) * log_expit(beta * LEAD_N.numpy())
    assert preference_loss(LEAD_N, beta).tolist() == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.5])
def test_gradient_is_minus_one_without_a_lead_and_dies_out_with_it(beta: float) -> None:
    lead = torch.tensor([0.0, 100 / beta, -100 / beta], dtype=torch.float64, requires_grad=True)
    preference_loss(lead, beta).sum().backward()
    assert lead.grad is not None
    assert lead.grad.tolist() == pytest.approx([-1.0, 0.0, -2.0], abs=1e-12)


def test_small_beta_is_gradient_ascent() -> None:
    beta = 1e-7
    expected = (2 / beta) * math.log(2) - LEAD_N
    assert preference_loss(LEAD_N, beta).tolist() == pytest.approx(expected.tolist(), abs=1e-3)
