"""Gradient difference: ascent on the forget answers, descent (or a KL tether) on the retain answers.

Paper: Liu et al., "Continual Learning and Private Unlearning" (arXiv 2203.12817); as a baseline of TOFU (arXiv 2401.06121), section 4.
``retain: kl`` is the KL-minimisation variant of the same section, with the divergence taken over answer tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.tokens import token_mean, token_nll
from unlearn.methods.base import Method
from unlearn.methods.gradient_ascent import gradient_ascent_loss
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class GradDiffConfig(MethodConfig):
    """Weights of the two halves."""

    forget_weight: float = 1.0
    """weight of the ascent (gamma), >= 0"""
    retain_weight: float = 1.0
    """weight of the retain term (alpha), >= 0"""
    retain: str = "nll"
    """nll (cross-entropy on the retain answers) or kl (from the original model's predictions)"""

    def __post_init__(self) -> None:
        check(self.forget_weight >= 0, "method.forget_weight", ">= 0", self.forget_weight)
        check(self.retain_weight >= 0, "method.retain_weight", ">= 0", self.retain_weight)
        one_of(self.retain, ("nll", "kl"), "method.retain")


def grad_diff_loss(forget_nll_A: Tensor, retain: Tensor, *, forget_weight: float = 1.0, retain_weight: float = 1.0) -> Tensor:
    """``-gamma * mean(forget_nll) + alpha * retain``.

    Args:
        forget_nll_A: negative log-likelihood of each forget answer token, shape [A].
        retain: scalar retain term.
        forget_weight: gamma.
        retain_weight: alpha.
    """
    return forget_weight * gradient_ascent_loss(forget_nll_A) + retain_weight * retain


class GradDiff(Method):
    """Gradient ascent held back by a retain term."""

    name = "grad_diff"
    family = "likelihood"
    summary = "gradient ascent plus cross-entropy (or KL to the original model) on the retain answers"
    paper = "https://arxiv.org/abs/2203.12817"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    Config = GradDiffConfig
    config: GradDiffConfig

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The reference only for ``retain: kl``."""
        return cls.needs if isinstance(config, GradDiffConfig) and config.retain == "kl" else frozenset()

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (negative), ``retain``, both before weighting."""
        forget = forward(lm, batch["forget"])
        kept = forward(lm, batch["retain"])
        nll_A = token_nll(forget.logits_AV, forget.targets_A)
        if self.config.retain == "kl" and self.context.reference is not None:
            retain = kl_divergence(self.context.reference.logits(batch["retain"]), kept.logits_AV).mean()
        else:
            retain = token_mean(token_nll(kept.logits_AV, kept.targets_A))
        total = grad_diff_loss(nll_A, retain, forget_weight=self.config.forget_weight, retain_weight=self.config.retain_weight)
        return LossTerms(total, {"forget": gradient_ascent_loss(nll_A), "retain": retain})
