"""Weighted gradient ascent: tokens that the model hardly believes any more are pushed less.

Paper: Wang et al., "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond" (arXiv 2502.19301), the objective called
WGA. The gradient of ``log p`` grows as 1/p while p falls; the weight ``p^beta`` takes that back. The defaults are those of the published
code. The weight is a constant for the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.config.checks import check
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.gradient_ascent import gradient_ascent_loss
from unlearn.methods.retain import RetainMethod, TradeOffConfig
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class WGAConfig(TradeOffConfig):
    """Exponent of the weight, and the trade-off."""

    beta: float = 1.0
    """exponent of the weight, finite and >= 0; 0 is plain gradient ascent"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.beta < float("inf"), "method.beta", "finite and >= 0", self.beta)


def wga_loss(nll_A: Tensor, beta: float) -> Tensor:
    """``-mean(p^beta * nll)`` over the answer tokens, p = exp(-nll) without a gradient; in (-inf, 0].

    For beta > 0 it is bounded below by ``-1 / (e * beta)``.

    Args:
        nll_A: negative log-likelihood of each answer token in nats, shape [A].
        beta: exponent, >= 0.

    >>> import torch
    >>> round(wga_loss(torch.tensor([0.5, 0.25]).log().neg(), beta=1.0).item(), 4)  # -(0.5 ln 2 + 0.25 ln 4) / 2
    -0.3466
    """
    weight_A = (-nll_A.detach()).exp() ** beta
    return -mean(weight_A * nll_A)


class WGA(RetainMethod):
    """Gradient ascent weighted by the model's confidence in each token."""

    name = "wga"
    family = "likelihood"
    summary = "gradient ascent on each forget token weighted by its probability, plus a retain term"
    paper = "https://arxiv.org/abs/2502.19301"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.beta": {"low": 0.1, "high": 3.0, "log": True},
        "method.forget_weight": {"low": 0.03, "high": 3.0, "log": True},
        "method.retain": {"choices": ["nll", "kl"]},
    }
    Config = WGAConfig
    config: WGAConfig

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (minus the mean negative log-likelihood), ``weighted`` (the loss, back at 0 once p is), ``retain``."""
        out = forward(lm, batch["forget"])
        nll_A = token_nll(out.logits_AV, out.targets_A)
        loss = wga_loss(nll_A, self.config.beta)
        return self.held(lm, batch, loss, self.config.forget_weight, {"forget": gradient_ascent_loss(nll_A), "weighted": loss})
