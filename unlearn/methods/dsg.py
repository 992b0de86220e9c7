"""Dynamic SAE guardrails: clamp features only in texts that are about the target. Nothing in the weights changes.

Paper: Muhamed, Bonato, Diab & Smith, "SAEs Can Improve Unlearning: Dynamic Sparse Autoencoder Guardrails for Precision Unlearning in LLMs"
(arXiv 2504.08192, COLM 2025), and its code (github.com/aashiqmuhamed/DynamicSAEGuardrails). A latent's importance is its mean squared
activation (a Fisher argument); those whose forget/retain ratio of importance reaches ``ratio_percentile`` are candidates, and the
``n_features`` most important on forget rows are chosen. With ``m_t`` = any chosen feature fires on token t and ``rho`` = the mean of m over
the text, all chosen features are set to ``-multiplier`` on tokens with m_t = 1 of a text with rho > tau; tau is the
``tau_percentile`` percentile of rho over retain rows. Whoever has the weights has the knowledge.

The published gate looks at a whole text at once. A text that is being generated has no whole yet, and a score of its first half that
depends on its second half is not what generation does. So ``gate`` is a choice:

- ``running`` (default): rho_t is the mean of m over the tokens up to t; a beginning shorter than ``min_tokens`` counts as that many, or one
  firing token at the very start would be a mean of 1. Causal: scoring, cached and uncached generation agree token by token, whatever the
  padding and the other rows. The number that tau is a percentile of is the largest rho_t on a token with m_t = 1 (0
  where there is none): the text is touched exactly if that is above tau, so tau has the meaning it has in the paper.
- ``sequence``: the paper's rho over the content tokens that are there (those of the pass and those before it in the cache). In scoring the
  answer counts too; in cached generation a token's gate is that of the text up to it, and earlier tokens keep what they got.
- ``published``: the code as it is: beginning-of-sequence and padding count as tokens without features, so padding dilutes rho. For
  comparisons only.

Deviations: the reference code averages activations and squares the mean ("both perform about the same"), here the squares are averaged as
in the paper; its two further percentiles, hardly binding as set there, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check, one_of
from unlearn.errors import ConfigError
from unlearn.latents.features import FeatureStats, by_ratio
from unlearn.methods.base import MethodContext
from unlearn.methods.sae_clamp import FeatureConfig, SAEIntervention, check_latents, clamp
from unlearn.models.intervene import Seen

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

GATES = ("running", "sequence", "published")


@dataclass(frozen=True, kw_only=True)
class DSGConfig(FeatureConfig):
    """Choice of the features, gate and clamp."""

    n_features: int = 20
    """most features to choose, >= 1; the paper tries 20, 50, 100 and 200"""
    ratio_percentile: float = 95.0
    """percentile that a feature's forget/retain ratio of importance has to reach, in [0, 100]"""
    multiplier: float = 500.0
    """chosen features are set to minus this, finite and >= 0"""
    tau_percentile: float = 95.0
    """percentile of rho over retain rows above which a text is touched, in [0, 100]"""
    gate: str = "running"
    """running (mean so far, causal), sequence (mean over the text that is there) or published (the same, padding counted)"""
    min_tokens: int = 16
    """least number of tokens that the running mean is taken over, >= 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio_percentile", "tau_percentile"):
            check(0 <= getattr(self, name) <= 100, f"method.{name}", "in [0, 100]", getattr(self, name))
        check(0 <= self.multiplier < float("inf"), "method.multiplier", "finite and >= 0", self.multiplier)
        one_of(self.gate, GATES, "method.gate")
        check(self.min_tokens >= 1, "method.min_tokens", ">= 1", self.min_tokens)


def gate_fractions(
    fires_BT: Tensor, counted_BT: Tensor, least: int | None, fired_B: Tensor | None = None, past_B: Tensor | None = None
) -> Tensor:
    """rho at every token, [B, T], in [0, 1].

    >>> fires, counted = torch.tensor([[True, False, True, False]]), torch.ones(1, 4, dtype=torch.bool)
    >>> gate_fractions(fires, counted, 1).tolist()[0][:2], gate_fractions(fires, counted, 4).tolist()[0][:2]
    ([1.0, 0.5], [0.25, 0.25])
    >>> gate_fractions(fires, counted, None).tolist()
    [[0.5, 0.5, 0.5, 0.5]]

    Args:
        fires_BT: a chosen feature fires.
        counted_BT: tokens that count as part of the text.
        least: mean over the tokens up to each, and over at least so many; None: over all tokens that are there.
        fired_B: firing tokens before this pass; None for none.
        past_B: counted tokens before this pass; None for none.
    """
    fired_BT, seen_BT = fires_BT.float().cumsum(1), counted_BT.float().cumsum(1)
    if least is None:
        fired_BT, seen_BT = (x[:, -1:].expand_as(x) for x in (fired_BT, seen_BT))
    if fired_B is not None and past_B is not None:
        fired_BT, seen_BT = fired_BT + fired_B[:, None], seen_BT + past_B[:, None]
    return fired_BT / seen_BT.clamp(min=least or 1)


def gate_statistic(fires_BT: Tensor, counted_BT: Tensor, least: int | None) -> Tensor:
    """The largest rho on a token on which a feature fires, [B]: what tau is compared with; 0 where none fires.

    >>> gate_statistic(torch.tensor([[False, True, True, False]]), torch.ones(1, 4, dtype=torch.bool), 1)
    tensor([0.6667])
    """
    rho_BT = gate_fractions(fires_BT, counted_BT, least)
    return torch.where(fires_BT, rho_BT, torch.zeros_like(rho_BT)).amax(1)


class DSG(SAEIntervention):
    """Sets the chosen features far below zero on their tokens, in texts that show them more often than retain rows do."""

    name = "dsg"
    family = "intervention"
    summary = "SAE features are clamped in texts where they fire more often than on retain rows (dynamic guardrails); no weight changes"
    paper = "https://arxiv.org/abs/2504.08192"
    streams = ()
    needs = frozenset({"sae", "rows"})
    trains = False
    intervention = True
    Config = DSGConfig
    config: DSGConfig
    tau: Tensor

    def __init__(self, config: DSGConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.least = config.min_tokens if config.gate == "running" else None
        self.register_buffer("tau", torch.zeros(()), persistent=False)

    def choose(self, forget: FeatureStats, retain: FeatureStats) -> Tensor:
        """High forget/retain ratio of mean squared activations, most important on forget rows first.

        Raises:
            ConfigError: nothing fires on forget rows, or an index is not the SAE's.
        """
        check_latents(self.config.latents, len(forget.count_F))
        if self.config.latents:
            return torch.tensor(self.config.latents, device=forget.count_F.device)
        ratio_percentile = self.config.ratio_percentile
        chosen_S = by_ratio(forget.mean_square_F, retain.mean_square_F, ratio_percentile, self.config.n_features)
        if not len(chosen_S):
            raise ConfigError(f"method.ratio_percentile must leave a feature that fires on forget rows; found {ratio_percentile}.")
        return chosen_S

    def _counted(self, content_BT: Tensor) -> Tensor:
        return torch.ones_like(content_BT) if self.config.gate == "published" else content_BT

    def calibrate(self, lm: PreTrainedModel) -> None:
        """tau from the retain rows."""
        self.tau = self._tau(self.chosen_activations(lm, "retain"))

    def _tau(self, retain: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        values = [
            gate_statistic((acts_BTS > 0).any(-1) & content_BT, self._counted(content_BT), self.least) for acts_BTS, content_BT in retain
        ]
        return torch.quantile(torch.cat(values), self.config.tau_percentile / 100)

    def edit(self, hidden_BTD: Tensor, seen: Seen) -> Tensor:
        """Clamp all chosen features on the tokens where one of them fires, once rho is above tau; counts go on through the cache."""
        fires_BT = self.firing(hidden_BTD, seen).any(-1)
        counted_BT = self._counted(seen.content_BT)
        fired_B, past_B = seen.memory.get("counts", (None, None))
        rho_BT = gate_fractions(fires_BT, counted_BT, self.least, fired_B, past_B)
        now = fires_BT.float().sum(1), counted_BT.float().sum(1)
        seen.memory["counts"] = now if fired_B is None else (fired_B + now[0], past_B + now[1])
        where_BTS = (fires_BT & (rho_BT > self.tau))[..., None].expand(*fires_BT.shape, len(self.latents_S))
        return clamp(self.sae, hidden_BTD, self.latents_S, where_BTS, -self.config.multiplier)
