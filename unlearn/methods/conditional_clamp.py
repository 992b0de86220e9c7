"""Clamping SAE features only where they fire strongly. Nothing in the weights changes: whoever has the weights has the knowledge.

Paper: Khoriaty, Shportko, Mercier & Wood-Doughty, "Don't Forget It! Conditional Sparse Autoencoder Clamping Works for Unlearning"
(arXiv 2503.11127). As ``sae_clamp``, but a feature is set to ``-multiplier`` only where it is above a threshold of its own, so that weak,
incidental firing on other text is left alone; with ``refusal_latents`` such tokens also get those features set to ``refusal_value`` (the
paper's refusal clamp, next to its "clamp prime").

Reconstruction: the paper's body was not available, so how it sets the threshold is not known. Here it is ``threshold``, or by default the
``retain_quantile`` quantile of the feature's own activations where it fires on retain tokens (0 for a feature that never does). Features
are chosen as in ``sae_clamp``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check
from unlearn.latents.features import FeatureStats
from unlearn.methods.base import MethodContext
from unlearn.methods.sae_clamp import SAEClampConfig, SAEIntervention, check_latents, choose_below_ceiling, clamp
from unlearn.models.intervene import Seen

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ConditionalClampConfig(SAEClampConfig):
    """Choice of the features, when they are set, and to what."""

    multiplier: float = 100.0
    """chosen features are set to minus this where they fire strongly, finite and >= 0"""
    threshold: float | None = None
    """activation above which a feature is set, finite and >= 0; null takes retain_quantile"""
    retain_quantile: float = 0.95
    """quantile of a feature's activations where it fires on retain tokens, in [0, 1]"""
    refusal_latents: list[int] = field(default_factory=list)
    """latents that are raised where a chosen feature is set, >= 0; empty: none"""
    refusal_value: float = 20.0
    """what refusal_latents are set to, finite and >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        infinite = float("inf")
        check(self.threshold is None or 0 <= self.threshold < infinite, "method.threshold", "null, or finite and >= 0", self.threshold)
        check(0 <= self.retain_quantile <= 1, "method.retain_quantile", "in [0, 1]", self.retain_quantile)
        check(all(i >= 0 for i in self.refusal_latents), "method.refusal_latents", "a list of indices >= 0", self.refusal_latents)
        check(0 <= self.refusal_value < infinite, "method.refusal_value", "finite and >= 0", self.refusal_value)


def firing_quantile(acts_NS: Tensor, quantile: float) -> Tensor:
    """Quantile of each latent's activations where it is above 0, [S]; 0 for one that never is.

    >>> firing_quantile(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), 0.5)
    tensor([2., 0.])
    """
    none = acts_NS.new_zeros(())
    columns = [column_N[column_N > 0] for column_N in acts_NS.unbind(1)]
    return torch.stack([torch.quantile(fires, quantile) if len(fires) else none for fires in columns])


class ConditionalClamp(SAEIntervention):
    """Sets the chosen features to a negative value where they fire more strongly than on retain rows."""

    name = "conditional_clamp"
    family = "intervention"
    summary = "SAE features of the forget rows are set to a negative value where they fire above a threshold; no weight changes"
    paper = "https://arxiv.org/abs/2503.11127"
    streams = ()
    needs = frozenset({"sae", "rows"})
    trains = False
    intervention = True
    Config = ConditionalClampConfig
    config: ConditionalClampConfig
    threshold_S: Tensor
    refusal_R: Tensor

    def __init__(self, config: ConditionalClampConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        check_latents(config.refusal_latents, self.sae.d_sae, "method.refusal_latents")
        self.register_buffer("refusal_R", torch.tensor(config.refusal_latents, dtype=torch.long), persistent=False)
        self.register_buffer("threshold_S", torch.zeros(0), persistent=False)

    def choose(self, forget: FeatureStats, retain: FeatureStats) -> Tensor:
        """Below the ceiling on retain rows, most frequent on forget rows first."""
        return choose_below_ceiling(self.config, forget, retain)

    def calibrate(self, lm: PreTrainedModel) -> None:
        """Take every feature's threshold from its activations on retain tokens."""
        if self.config.threshold is not None:
            self.threshold_S = torch.full_like(self.latents_S, 0, dtype=torch.float32) + self.config.threshold
            return
        acts = [acts_BTS[content_BT] for acts_BTS, content_BT in self.chosen_activations(lm, "retain")]
        self.threshold_S = firing_quantile(torch.cat(acts), self.config.retain_quantile)

    def edit(self, hidden_BTD: Tensor, seen: Seen) -> Tensor:
        """Clamp each feature where it is above its threshold, and raise the refusal features there."""
        where_BTS = self.firing(hidden_BTD, seen, self.threshold_S)
        hidden_BTD = clamp(self.sae, hidden_BTD, self.latents_S, where_BTS, -self.config.multiplier)
        if not len(self.refusal_R):
            return hidden_BTD
        raised_BTR = where_BTS.any(-1, keepdim=True).expand(*where_BTS.shape[:2], len(self.refusal_R))
        return clamp(self.sae, hidden_BTD, self.refusal_R, raised_BTR, self.config.refusal_value)
