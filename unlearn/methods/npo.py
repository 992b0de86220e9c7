"""Negative preference optimisation: the forget answers are the rejected side of a preference without a chosen one.

Paper: Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning" (arXiv 2404.05868), section 3.
``-(2 / beta) * mean_i log sigmoid(-beta * (l(y_i) - l_ref(y_i)))``, l the summed log-probability of an answer: bounded below, with a
gradient that is ascent's at the start and dies out once an answer has become less likely than the original model had it. Retain term
and weights as in the paper's NPO+RT (``retain: nll``) and NPO+KL (``retain: kl``, over answer tokens only).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig
from unlearn.functional.preference import preference_loss, sequence_logprob
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.retain import RetainConfig, RetainMethod
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class NPOConfig(RetainConfig):
    """Sharpness of the preference, and weights."""

    beta: float = 0.1
    """inverse temperature, > 0; towards 0 it is gradient ascent"""
    forget_weight: float = 1.0
    """weight of the forgetting term (gamma), >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.beta < float("inf"), "method.beta", "finite and > 0", self.beta)
        check(0 <= self.forget_weight < float("inf"), "method.forget_weight", "finite and >= 0", self.forget_weight)


def npo_loss(logprob_B: Tensor, reference_B: Tensor, beta: float = 0.1) -> Tensor:
    """``mean_i -(2 / beta) log sigmoid(-beta (l_i - l_ref_i))``, a scalar > 0.

    >>> import torch
    >>> npo_loss(torch.tensor([-3.0]), torch.tensor([-3.0]), beta=2.0)
    tensor(0.6931)

    Args:
        logprob_B: summed log-probability of each forget answer, in nats.
        reference_B: the same under the original model.
        beta: inverse temperature, > 0.
    """
    return mean(preference_loss(reference_B - logprob_B, beta))


class NPO(RetainMethod):
    """Makes the forget answers less likely than the original model has them, ever more gently."""

    name = "npo"
    family = "preference"
    summary = "push the forget answers below what the original model gives them, with a bounded loss"
    paper = "https://arxiv.org/abs/2404.05868"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    search = {
        "method.beta": {"low": 0.02, "high": 1.0, "log": True},
        "method.retain": {"choices": ["nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = NPOConfig
    config: NPOConfig

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The reference in any case: the forgetting term compares with it."""
        return cls.needs

    @classmethod
    def reference_streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """The forget stream; the retain stream for ``retain: kl``."""
        return ("forget", "retain") if isinstance(config, NPOConfig) and config.retain == "kl" else ("forget",)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, ``retain``, both before weighting."""
        reference, rows = self.context.reference, batch["forget"]
        if reference is None:
            raise ValueError("npo needs a reference in its context")
        out = forward(lm, rows)
        nll_A, n = token_nll(out.logits_AV, out.targets_A), len(rows.row_id_B)
        before_B = sequence_logprob(reference.nll(rows), out.row_A, n)
        forget = npo_loss(sequence_logprob(nll_A, out.row_A, n), before_B, self.config.beta)
        return self.held(lm, batch, forget, self.config.forget_weight)
