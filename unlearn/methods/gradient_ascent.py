"""Gradient ascent on the answers of the forget rows.

Paper: Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models" (arXiv 2210.01504), section 3; the form
measured here is the one of TOFU (arXiv 2401.06121), section 4. The loss has no lower bound: expect collapse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.config.schema import MethodConfig
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.base import Method
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class GradientAscentConfig(MethodConfig):
    """Gradient ascent has no setting of its own; steps and learning rate (``optim``) decide how far it goes."""


def gradient_ascent_loss(nll_A: Tensor) -> Tensor:
    """``-mean(nll)`` over the answer tokens of the batch, in (-inf, 0].

    Args:
        nll_A: negative log-likelihood of each answer token in nats, shape [A].
    """
    return -mean(nll_A)


class GradientAscent(Method):
    """Raises the negative log-likelihood of the forget answers and looks at nothing else."""

    name = "gradient_ascent"
    family = "likelihood"
    summary = "raise the loss of the forget answers; no retain term, no bound"
    paper = "https://arxiv.org/abs/2210.01504"
    streams = ("forget",)
    search = {}
    Config = GradientAscentConfig

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (the total)."""
        out = forward(lm, batch["forget"])
        total = gradient_ascent_loss(token_nll(out.logits_AV, out.targets_A))
        return LossTerms(total, {"forget": total})
