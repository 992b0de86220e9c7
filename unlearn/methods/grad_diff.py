"""Gradient difference: ascent on the forget answers, descent (or a KL tether) on the retain answers.

Paper: Liu et al., "Continual Learning and Private Unlearning" (arXiv 2203.12817); as a baseline of TOFU (arXiv 2401.06121), section 4.
``retain: kl`` is the KL-minimisation variant of the same section, with the divergence taken over answer tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unlearn.functional.tokens import token_nll
from unlearn.methods.gradient_ascent import gradient_ascent_loss
from unlearn.methods.retain import RetainMethod, TradeOffConfig, retain_term
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class GradDiffConfig(TradeOffConfig):
    """Weights of the two halves."""

    RETAIN: ClassVar[tuple[str, ...]] = ("nll", "kl")

    forget_weight: float = 1.0
    """weight of the ascent (gamma), finite and >= 0"""
    retain_weight: float = 1.0
    """weight of the retain term (alpha), finite and >= 0"""
    retain: str = "nll"
    """nll (cross-entropy on the retain answers) or kl (from the original model's predictions)"""


def grad_diff_loss(forget_nll_A: Tensor, retain: Tensor, *, forget_weight: float = 1.0, retain_weight: float = 1.0) -> Tensor:
    """``-gamma * mean(forget_nll) + alpha * retain``.

    Args:
        forget_nll_A: negative log-likelihood of each forget answer token, shape [A].
        retain: scalar retain term.
        forget_weight: gamma.
        retain_weight: alpha.
    """
    return forget_weight * gradient_ascent_loss(forget_nll_A) + retain_weight * retain


class GradDiff(RetainMethod):
    """Gradient ascent held back by a retain term."""

    name = "grad_diff"
    family = "likelihood"
    summary = "gradient ascent plus cross-entropy (or KL to the original model) on the retain answers"
    paper = "https://arxiv.org/abs/2203.12817"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.forget_weight": {"low": 0.03, "high": 3.0, "log": True},
        "method.retain": {"choices": ["nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = GradDiffConfig
    config: GradDiffConfig

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (negative), ``retain``, both before weighting."""
        c = self.config
        out = forward(lm, batch["forget"])
        nll_A = token_nll(out.logits_AV, out.targets_A)
        retain = retain_term(lm, batch["retain"], self.context, c.retain)
        total = grad_diff_loss(nll_A, retain, forget_weight=c.forget_weight, retain_weight=c.retain_weight)
        return LossTerms(total, {"forget": gradient_ascent_loss(nll_A), "retain": retain})
