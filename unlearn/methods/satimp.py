"""SatImp: gradient ascent on the tokens that are neither forgotten yet nor beyond doubt.

Paper: Yang et al., "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning" (arXiv 2505.11953), section 5. Each token's loss is
weighted by ``p^beta1`` (saturation: what is forgotten already is left alone) times ``(1 - p)^beta2`` (importance: what the model is sure
of whatever happens counts less). The defaults are those of the published code. The weight is a constant for the gradient.

A model that is sure of every forget token (p near 1) gets weights near 0 and hardly moves at first; a larger ``forget_weight`` helps there.
With beta2 = 0 the method is weighted gradient ascent (``wga``) with ``beta = beta1``.
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
class SatImpConfig(TradeOffConfig):
    """Exponents of the two weights, and the trade-off."""

    beta1: float = 5.0
    """exponent of saturation, finite and >= 0"""
    beta2: float = 1.0
    """exponent of importance, finite and >= 0"""
    forget_weight: float = 0.1
    """weight of the forgetting term (gamma), finite and >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < float("inf"), f"method.{name}", "finite and >= 0", getattr(self, name))


def satimp_loss(nll_A: Tensor, beta1: float, beta2: float) -> Tensor:
    """``-mean(p^beta1 * (1 - p)^beta2 * nll)`` over the answer tokens, p = exp(-nll) without a gradient; in (-inf, 0].

    Args:
        nll_A: negative log-likelihood of each answer token in nats, shape [A].
        beta1: exponent of saturation, >= 0.
        beta2: exponent of importance, >= 0.

    >>> import torch
    >>> round(satimp_loss(torch.tensor([0.5]).log().neg(), beta1=2.0, beta2=1.0).item(), 4)  # -(1/4) (1/2) ln 2
    -0.0866
    """
    sure_A = -nll_A.detach()
    weight_A = sure_A.exp() ** beta1 * (-sure_A.expm1()).clamp(min=0) ** beta2
    return -mean(weight_A * nll_A)


class SatImp(RetainMethod):
    """Gradient ascent weighted by saturation and importance of each token."""

    name = "satimp"
    family = "likelihood"
    summary = "gradient ascent weighted by how far each forget token still is from forgotten and how unsure the model is of it"
    paper = "https://arxiv.org/abs/2505.11953"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.forget_weight": {"low": 0.1, "high": 10.0, "log": True},
        "method.beta1": {"low": 1.0, "high": 6.0},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = SatImpConfig
    config: SatImpConfig

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (minus the mean negative log-likelihood), ``weighted`` (the loss, back at 0 once p is), ``retain``."""
        out = forward(lm, batch["forget"])
        nll_A = token_nll(out.logits_AV, out.targets_A)
        loss = satimp_loss(nll_A, self.config.beta1, self.config.beta2)
        return self.held(lm, batch, loss, self.config.forget_weight, {"forget": gradient_ascent_loss(nll_A), "weighted": loss})
