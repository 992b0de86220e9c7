"""FLAT: an f-divergence between template answers and forget answers is maximised, on forget data alone.

Paper: Wang et al., "LLM Unlearning via Loss Adjustment with Only Forget Data" (arXiv 2410.11143), section 3 and its table of divergences.
With P_g the mean token probability of a template (refusal) answer and P_f that of the forget answer, the loss is ``-g(P_g) + f*(g(P_f))``,
g the optimal variational function and f* the conjugate: no reference model, no retain rows (a retain term may be added, off by default).

Templates are the source's refusals, one per row and step; statements and mentions have none: they take part in the second half only. The
loss pulls at probabilities, not at their logarithms: where a template is next to impossible, so is its gradient. The authors' code averages
the probabilities over the whole batch, prompt and padding counting as zeros, before it applies g and f*; here each answer has its own
P (the mean over its tokens) and each half is a mean over answers, so that neither padding nor the cut into batches matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch.nn.functional import softplus

from unlearn.config.checks import one_of
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import row_mean, token_nll
from unlearn.methods.answers import AnswerMethod
from unlearn.methods.retain import RetainConfig
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Halves(NamedTuple):
    """``g(P)`` and ``f*(g(P))`` of one divergence, both rising in P."""

    reward: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor]


DIVERGENCES: Mapping[str, Halves] = {
    "tv": Halves(lambda p: p.tanh() / 2, lambda p: p.tanh() / 2),
    "kl": Halves(lambda p: p, lambda p: (p - 1).exp()),
    "pearson": Halves(lambda p: p, lambda p: p.square() / 4 + p),
    "js": Halves(lambda p: math.log(2) - softplus(-p), lambda p: softplus(p) - math.log(2)),
}
"""Total variation, Kullback-Leibler, Pearson chi-squared, Jensen-Shannon."""


@dataclass(frozen=True, kw_only=True)
class FLATConfig(RetainConfig):
    """The divergence, and a retain term that the paper does without."""

    divergence: str = "tv"
    """tv (total variation), kl, pearson or js"""
    retain: str = "none"
    """none (the paper: forget data only), nll or kl"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.divergence, tuple(DIVERGENCES), "method.divergence")


def flat_loss(template_N: Tensor, forget_B: Tensor, divergence: str = "tv") -> Tensor:
    """``-mean g(P_g) + mean f*(g(P_f))``, a scalar; the first mean is left out where there is no template.

    >>> import torch
    >>> flat_loss(torch.tensor([0.25]), torch.tensor([1.0]), "kl")
    tensor(0.7500)

    Args:
        template_N: mean token probability of each template answer, in [0, 1].
        forget_B: the same of each forget answer.
        divergence: a key of ``DIVERGENCES``.
    """
    halves = DIVERGENCES[divergence]
    return mean(halves.penalty(forget_B)) - mean(halves.reward(template_N))


def answer_probability(lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Mean token probability of each row's answer [B], in [0, 1]; fp32 at least."""
    out = forward(lm, batch)
    return row_mean((-token_nll(out.logits_AV, out.targets_A)).exp(), out.row_A, len(batch.row_id_B))


class FLAT(AnswerMethod):
    """Raises the probability of a refusal and lowers that of the forget answer, weighted by an f-divergence."""

    name = "flat"
    family = "preference"
    summary = "maximise an f-divergence between refusals and forget answers, with no retain data"
    paper = "https://arxiv.org/abs/2410.11143"
    streams = ("forget", "retain")
    needs = frozenset({"rows", "reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.divergence": {"choices": ["tv", "kl", "pearson", "js"]},
        "method.retain": {"choices": ["none", "nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True, "when": {"method.retain": ["nll", "kl"]}},
    }
    Config = FLATConfig
    config: FLATConfig

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (may be negative), ``retain`` where there is one."""
        template, _ = self.alternates.batch(batch["forget"], self.step)
        forget_B = answer_probability(lm, batch["forget"])
        template_N = answer_probability(lm, batch["forget"])[:0] if template is None else answer_probability(lm, template)
        return self.held(lm, batch, flat_loss(template_N, forget_B, self.config.divergence))
