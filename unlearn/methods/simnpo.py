"""SimNPO: negative preference optimisation without a reference model, on the mean log-probability per token.

Paper: Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning" (arXiv 2410.07163), section 4.
``-(2 / beta) * mean_i log sigmoid(-(beta / |y_i|) * l(y_i) - margin)``. Defaults are those of open-unlearning (beta 4.5, margin 0,
weight of the forgetting term 0.125); the authors used beta 2.5 with weight 0.1375 on TOFU forget05, and 4.5 with 0.125 on forget10.
open-unlearning takes the margin off inside the product with beta, the paper and this file outside; at 0 both are the same. A beta is not
comparable with NPO's, which sums over tokens. An answer that is unlikely to begin with has next to no loss and no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.config.checks import check
from unlearn.functional.preference import preference_loss
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import row_mean, token_nll
from unlearn.methods.retain import RetainConfig, RetainMethod
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class SimNPOConfig(RetainConfig):
    """Sharpness and margin of the preference, and weights."""

    beta: float = 4.5
    """inverse temperature per token, > 0"""
    margin: float = 0.0
    """what an answer's scaled negative log-likelihood per token must exceed before the loss is small (gamma of the paper), finite"""
    forget_weight: float = 0.125
    """weight of the forgetting term, >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.beta < float("inf"), "method.beta", "finite and > 0", self.beta)
        check(math.isfinite(self.margin), "method.margin", "finite", self.margin)
        check(0 <= self.forget_weight < float("inf"), "method.forget_weight", "finite and >= 0", self.forget_weight)


def simnpo_loss(mean_nll_B: Tensor, beta: float = 4.5, margin: float = 0.0) -> Tensor:
    """``mean_i -(2 / beta) log sigmoid(beta * nll_i - margin)``, a scalar > 0.

    >>> import torch
    >>> simnpo_loss(torch.tensor([0.0]), beta=2.0)
    tensor(0.6931)

    Args:
        mean_nll_B: negative log-likelihood per token of each forget answer, in nats.
        beta: inverse temperature, > 0.
        margin: gamma of the paper.
    """
    return mean(preference_loss(mean_nll_B - margin / beta, beta))


class SimNPO(RetainMethod):
    """Makes each token of the forget answers unlikely in absolute terms."""

    name = "simnpo"
    family = "preference"
    summary = "negative preference optimisation without a reference model, on the mean log-probability per token"
    paper = "https://arxiv.org/abs/2410.07163"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.beta": {"low": 0.5, "high": 10.0, "log": True},
        "method.margin": {"low": 0.0, "high": 3.0},
        "method.forget_weight": {"low": 0.03, "high": 3.0, "log": True},
    }
    Config = SimNPOConfig
    config: SimNPOConfig

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, ``retain``, both before weighting."""
        out = forward(lm, batch["forget"])
        nll_B = row_mean(token_nll(out.logits_AV, out.targets_A), out.row_A, len(batch["forget"].row_id_B))
        return self.held(lm, batch, simnpo_loss(nll_B, self.config.beta, self.config.margin), self.config.forget_weight)
