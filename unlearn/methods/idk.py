"""IDK fine-tuning (rejection tuning): the forget questions are answered by a refusal.

Paper: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs" (arXiv 2401.06121), section 4, where it appears as the refusal
baseline; RWKU (arXiv 2406.10890) has it as rejection tuning. Cross-entropy on (question, refusal) plus a retain term. Refusals are the
source's, one per row and step, drawn anew; statements and mentions have no refusal and are left out of the forgetting term. The papers
train on one refusal per question and epoch, drawn from a list of about a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.config.checks import check
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.answers import AnswerMethod, nothing
from unlearn.methods.retain import RetainConfig
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class IDKConfig(RetainConfig):
    """Weights of the two halves."""

    forget_weight: float = 1.0
    """weight of the refusals, >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.forget_weight < float("inf"), "method.forget_weight", "finite and >= 0", self.forget_weight)


def idk_loss(refusal_nll_A: Tensor) -> Tensor:
    """``mean_t -log p(refusal_t)`` over the refusal tokens of the batch, a scalar >= 0.

    >>> import torch
    >>> idk_loss(torch.tensor([1.0, 3.0]))
    tensor(2.)

    Args:
        refusal_nll_A: negative log-likelihood of each token of the refusals, in nats.
    """
    return mean(refusal_nll_A)


class IDK(AnswerMethod):
    """Teaches a refusal to every forget question."""

    name = "idk"
    family = "preference"
    summary = "fine-tune on refusals to the forget questions"
    paper = "https://arxiv.org/abs/2401.06121"
    streams = ("forget", "retain")
    needs = frozenset({"rows", "reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.forget_weight": {"low": 0.03, "high": 3.0, "log": True},
        "method.retain": {"choices": ["nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = IDKConfig
    config: IDKConfig

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (0 where the batch has no question), ``retain``, both before weighting."""
        refused, _ = self.alternates.batch(batch["forget"], self.step)
        if refused is None:
            return self.held(lm, batch, nothing(lm, batch["forget"]), self.config.forget_weight)
        out = forward(lm, refused)
        return self.held(lm, batch, idk_loss(token_nll(out.logits_AV, out.targets_A)), self.config.forget_weight)
