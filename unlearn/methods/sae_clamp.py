"""Clamping SAE features while the model runs. Nothing in the weights changes: whoever has the weights has the knowledge.

Paper: Farrell, Lau & Conmy, "Applying sparse autoencoders to unlearn knowledge in language models" (arXiv 2410.19278), with the selection
and the grid of SAEBench's unlearning evaluation, its reference code. Features that fire on the forget rows and on less than
``retain_threshold`` of the retain tokens are chosen once, on the original model. Wherever a chosen feature is above 0, it is set to
``-multiplier``; what the SAE does not reconstruct is added back, so the output moves by ``(z' - z) W_dec`` and tokens on which no chosen
feature fires do not change at all. The beginning-of-sequence token is left alone, and so is padding. The paper finds that
``multiplier: 0`` (ablation) does not forget and that the side effects of many features are those of RMU or worse.

Deviations: the threshold is on tokens of the retain stream, where the paper measures general text (WikiText) and an SAE of 16,000 latents.
Retain rows are sentences of the same kind as the forget rows, and small SAEs have no latents as rare as that, so the default is 0.05 and
not one of the paper's 0.001 and 0.01. The rest of its grid (10 or 20 features, multiplier 25 to 200) is a search; the defaults are a point
of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig
from unlearn.errors import ConfigError
from unlearn.functional.tokens import upcast
from unlearn.latents.features import FeatureStats, activations, below_ceiling, measure_features
from unlearn.methods.base import Method, MethodContext
from unlearn.models.decoder import device_of
from unlearn.models.intervene import Seen, intervene
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.models.sae import FrozenSAE


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(MethodConfig):
    """Which features a method works on."""

    n_features: int = 10
    """most features to choose, >= 1"""
    latents: list[int] = field(default_factory=list)
    """latents chosen by hand, >= 0; empty: chosen by the method's rule"""

    def __post_init__(self) -> None:
        check(self.n_features >= 1, "method.n_features", ">= 1", self.n_features)
        check(all(i >= 0 for i in self.latents), "method.latents", "a list of indices >= 0", self.latents)


@dataclass(frozen=True, kw_only=True)
class CeilingConfig(FeatureConfig):
    """Features that fire on forget rows and hardly ever on retain rows."""

    retain_threshold: float = 0.05
    """fraction of the retain tokens on which a feature may fire, in (0, 1]; the paper tries 0.001 and 0.01"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.retain_threshold <= 1, "method.retain_threshold", "in (0, 1]", self.retain_threshold)


@dataclass(frozen=True, kw_only=True)
class SAEClampConfig(CeilingConfig):
    """Choice of the features, and what they are set to."""

    multiplier: float = 25.0
    """chosen features are set to minus this where they fire, finite and >= 0; 0 ablates them, the paper's grid runs from 25 to 200"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.multiplier < float("inf"), "method.multiplier", "finite and >= 0", self.multiplier)


def clamp(sae: FrozenSAE, hidden_BTD: Tensor, latents_S: Tensor, where_BTS: Tensor, value: float) -> Tensor:
    """Set ``latents_S`` to ``value`` where told; add what the SAE cannot reconstruct back: ``h + decode(z') - decode(z)``, [B, T, D].

    Args:
        sae: the SAE.
        hidden_BTD: output of the hooked block; tokens on which nothing is set come back bit for bit.
        latents_S: indices of latents.
        where_BTS: True where a latent is set.
        value: what it is set to.
    """
    rows_N, places_N = where_BTS.any(-1).nonzero(as_tuple=True)
    if not len(rows_N):
        return hidden_BTD
    hidden_ND = upcast(hidden_BTD[rows_N, places_N])
    acts_NF = sae.encode(hidden_ND)
    new_NF = acts_NF.clone()
    new_NF[:, latents_S] = acts_NF[:, latents_S].masked_fill(where_BTS[rows_N, places_N], value)
    changed_ND = hidden_ND + sae.decode(new_NF, hidden_ND) - sae.decode(acts_NF, hidden_ND)
    return hidden_BTD.index_put((rows_N, places_N), changed_ND.to(hidden_BTD.dtype))


def check_latents(latents: list[int], total: int, key: str = "method.latents") -> None:
    """Raise ``ConfigError`` unless every index is one of an SAE with ``total`` latents."""
    check(max(latents, default=0) < total, key, f"a list of indices below {total} (the SAE's latents)", latents)


def choose_below_ceiling(config: CeilingConfig, forget: FeatureStats, retain: FeatureStats) -> Tensor:
    """``latents``, or up to ``n_features`` that fire on forget tokens and on less than ``retain_threshold`` of the retain tokens.

    Raises:
        ConfigError: no feature is below the threshold, or an index is not the SAE's.
    """
    check_latents(config.latents, len(forget.count_F))
    if config.latents:
        return torch.tensor(config.latents, device=forget.count_F.device)
    chosen_S = below_ceiling(forget.rate_F, retain.rate_F, config.retain_threshold, config.n_features)
    if not len(chosen_S):
        least = float(retain.rate_F[forget.count_F > 0].min()) if bool((forget.count_F > 0).any()) else 1.0
        raise ConfigError(
            f"method.retain_threshold must be above {least:.3g}, the least that a feature of the forget rows fires on retain tokens; "
            f"found {config.retain_threshold}."
        )
    return chosen_S


class SAEIntervention(Method, ABC):
    """An edit of the SAE's latents while the model runs; a subclass chooses the latents and says where they are set, and to what."""

    config: FeatureConfig
    latents_S: Tensor

    def __init__(self, config: FeatureConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.sae is None or context.reader is None or context.data is None or context.hook_layer is None:
            raise ValueError(f"{self.name} needs sae, rows and hook_layer in its context")
        self.sae, self.layer = context.sae, context.hook_layer
        self.reader, self.data = context.reader, context.data
        self.bos_id: int | None = context.reader.tokenizer.bos_token_id
        self.register_buffer("latents_S", torch.zeros(0, dtype=torch.long), persistent=False)

    @abstractmethod
    def choose(self, forget: FeatureStats, retain: FeatureStats) -> Tensor:
        """Indices of the latents to work on, [S]."""

    @abstractmethod
    def edit(self, hidden_BTD: Tensor, seen: Seen) -> Tensor:
        """The new output of the hooked block."""

    def rows(self, stream: str, lm: PreTrainedModel) -> list[TokenBatch]:
        """Batches of a stream's rows on the model's device."""
        return self.reader.batches(self.data.streams[stream], device_of(lm))

    def setup(self, lm: PreTrainedModel) -> None:
        """Choose the latents on the original model's forget and retain rows."""
        forget, retain = (measure_features(lm, self.sae, self.rows(s, lm), self.layer, self.bos_id) for s in ("forget", "retain"))
        self.latents_S = self.choose(forget, retain)
        self.calibrate(lm)

    def calibrate(self, lm: PreTrainedModel) -> None:  # noqa: B027 most methods have nothing to do here
        """Set thresholds for the chosen latents."""

    def chosen_activations(self, lm: PreTrainedModel, stream: str) -> list[tuple[Tensor, Tensor]]:
        """Activations of the chosen latents [B, T, S] and where a token is content [B, T], batch by batch."""
        return list(activations(lm, self.sae, self.rows(stream, lm), self.layer, self.bos_id, self.latents_S))

    def firing(self, hidden_BTD: Tensor, seen: Seen, threshold: Tensor | float = 0.0) -> Tensor:
        """Where a chosen latent is above ``threshold`` on a content token, [B, T, S]."""
        return (self.sae.encode(hidden_BTD, self.latents_S) > threshold) & seen.content_BT[..., None]

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Zero: nothing is trained."""
        return LossTerms(torch.zeros(()), {})

    def install(self, lm: PreTrainedModel) -> None:
        """Put the edit on the hooked block."""
        self.handle = intervene(lm, {self.layer: self.edit}, self.bos_id)


class SAEClamp(SAEIntervention):
    """Sets the chosen features to a negative value wherever they fire."""

    name = "sae_clamp"
    family = "intervention"
    summary = "SAE features of the forget rows are set to a negative value where they fire; no weight changes"
    paper = "https://arxiv.org/abs/2410.19278"
    streams = ()
    needs = frozenset({"sae", "rows"})
    trains = False
    intervention = True
    Config = SAEClampConfig
    config: SAEClampConfig

    def choose(self, forget: FeatureStats, retain: FeatureStats) -> Tensor:
        """Below the ceiling on retain rows, most frequent on forget rows first."""
        return choose_below_ceiling(self.config, forget, retain)

    def edit(self, hidden_BTD: Tensor, seen: Seen) -> Tensor:
        """Clamp each feature where it fires."""
        return clamp(self.sae, hidden_BTD, self.latents_S, self.firing(hidden_BTD, seen), -self.config.multiplier)
