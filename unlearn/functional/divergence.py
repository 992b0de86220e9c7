"""Divergences between two models' next-token distributions, position by position."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unlearn.functional.tokens import upcast


def _expected_difference(log_p_AV: Tensor, log_q_AV: Tensor) -> Tensor:
    """sum_v p (log p - log q); tokens that p rules out count 0."""
    p_AV = log_p_AV.exp()
    return (p_AV * (log_p_AV - log_q_AV).masked_fill(p_AV == 0, 0.0)).sum(-1)


def kl_divergence(ref_logits_AV: Tensor, logits_AV: Tensor) -> Tensor:
    """KL(reference || model) at each position ``[A]``, in nats, >= 0; float32 at least.

    ``sum_v p_ref(v) (log p_ref(v) - log p(v))``. The mean over answer tokens is the retain term of GradDiff-type losses; averaging over
    prompt and padding as well, as some code bases do, makes the weight of the term depend on the padding.

    >>> kl_divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    return _expected_difference(upcast(ref_logits_AV).log_softmax(-1), upcast(logits_AV).log_softmax(-1))


def js_divergence(a_logits_AV: Tensor, b_logits_AV: Tensor) -> Tensor:
    """Jensen-Shannon divergence at each position ``[A]``, in nats, in [0, ln 2]; float32 at least.

    ``(KL(a || m) + KL(b || m)) / 2`` with m the mean of both distributions.

    >>> js_divergence(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]]))
    tensor([0.6931])
    """
    log_a_AV, log_b_AV = upcast(a_logits_AV).log_softmax(-1), upcast(b_logits_AV).log_softmax(-1)
    log_m_AV = torch.logaddexp(log_a_AV, log_b_AV) - math.log(2)
    return (_expected_difference(log_a_AV, log_m_AV) + _expected_difference(log_b_AV, log_m_AV)) / 2
