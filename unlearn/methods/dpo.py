"""Direct preference optimisation with refusals: a refusal is preferred to the answer that has to be forgotten.

Papers: Rafailov et al., "Direct Preference Optimization" (arXiv 2305.18290), equation 7, for the loss; TOFU (arXiv 2401.06121), section 4,
for its use here. ``-(2 / beta) * mean_i log sigmoid(beta * [(l - l_ref)(refusal_i) - (l - l_ref)(y_i)])``, l the summed log-probability
of an answer; the factor 2 / beta (as in NPO and open-unlearning) makes the gradient at the start independent of beta. Refusals are the
source's, one per row and step; statements and mentions have no refusal and are left out of the forgetting term. The original model's
log-probabilities of the refusals are computed once, before training: ``number`` refusals for each question, its own draw from the list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig
from unlearn.data.alternates import refusals
from unlearn.functional.preference import preference_loss, sequence_logprob
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import answer_positions
from unlearn.methods.answers import AnswerMethod, answer_logprob, nothing, take
from unlearn.methods.retain import RetainConfig
from unlearn.models.decoder import device_of, evaluating
from unlearn.types import LossTerms, Row, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.data.alternates import AlternateScores


@dataclass(frozen=True, kw_only=True)
class DPOConfig(RetainConfig):
    """Sharpness of the preference, and weights."""

    beta: float = 0.1
    """inverse temperature, > 0"""
    forget_weight: float = 1.0
    """weight of the forgetting term (gamma), >= 0"""
    number: int = 10
    """preferred answers kept for each question, >= 1; the original model reads every one before training"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.beta < float("inf"), "method.beta", "finite and > 0", self.beta)
        check(0 <= self.forget_weight < float("inf"), "method.forget_weight", "finite and >= 0", self.forget_weight)
        check(self.number >= 1, "method.number", ">= 1", self.number)


def dpo_loss(chosen_N: Tensor, rejected_N: Tensor, beta: float = 0.1) -> Tensor:
    """``mean_i -(2 / beta) log sigmoid(beta (chosen_i - rejected_i))``, a scalar > 0.

    >>> import torch
    >>> dpo_loss(torch.tensor([1.0]), torch.tensor([1.0]), beta=2.0)
    tensor(0.6931)

    Args:
        chosen_N: log-probability of each preferred answer minus the original model's, in nats.
        rejected_N: the same for the answer to forget.
        beta: inverse temperature, > 0.
    """
    return mean(preference_loss(chosen_N - rejected_N, beta))


class DPO(AnswerMethod):
    """Prefers a refusal to the answer that has to be forgotten."""

    name = "dpo"
    family = "preference"
    summary = "prefer a refusal to the forget answer, relative to the original model"
    paper = "https://arxiv.org/abs/2305.18290"
    streams = ("forget", "retain")
    needs = frozenset({"rows", "reference_logprobs"})
    search = {
        "method.beta": {"low": 0.02, "high": 1.0, "log": True},
        "method.retain": {"choices": ["nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = DPOConfig
    config: DPOConfig
    before: AlternateScores

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The reference in any case: the forgetting term compares with it."""
        return cls.needs

    @classmethod
    def reference_streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """The forget stream; the retain stream for ``retain: kl``."""
        return ("forget", "retain") if isinstance(config, DPOConfig) and config.retain == "kl" else ("forget",)

    def answers(self, lm: PreTrainedModel, rows: Sequence[Row]) -> Mapping[int, Sequence[str]]:
        """At most ``number`` refusals for each question."""
        return refusals(rows, self._source()[1], self.config.number)

    def setup(self, lm: PreTrainedModel) -> None:
        """Tokenise the preferred answers and keep the original model's log-probabilities of them."""
        super().setup(lm)
        with evaluating(lm):
            size = self._source()[2].batch_size
            self.before = self.alternates.measure(lambda batch: answer_logprob(lm, batch), size, device_of(lm))

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (0 where the batch has no question), ``retain``, both before weighting."""
        reference = self.context.reference
        if reference is None:
            raise ValueError(f"{self.name} needs a reference in its context")
        preferred, index_N = self.alternates.batch(batch["forget"], self.step)
        if preferred is None:
            return self.held(lm, batch, nothing(lm, batch["forget"], passes=2), self.config.forget_weight)
        own = take(batch["forget"], index_N)
        own_before_N = sequence_logprob(reference.nll(own), answer_positions(own.labels_BT)[0], len(index_N))
        chosen_N = answer_logprob(lm, preferred) - self.before.of(preferred, self.step)
        forget = dpo_loss(chosen_N, answer_logprob(lm, own) - own_before_N, self.config.beta)
        return self.held(lm, batch, forget, self.config.forget_weight)
