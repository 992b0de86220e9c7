"""PISCES: rewrite the MLP neurons whose output carries the target's SAE features. An edit of the weights, without training.

Paper: Gur-Arieh, Suslik, Hong, Barez & Geva, "Precise In-Parameter Concept Erasure in Large Language Models" (arXiv 2505.22586, EMNLP
2025), and its code (github.com/yoavgur/PISCES). A neuron's output vector w is a row of W_out. For each feature f, neurons with
``|w . W_enc[:, f]| > tau * max`` are affine to it; each such w is encoded, its coefficient of f is set to ``-mu * max * s``, it is decoded,
and what the SAE does not reconstruct is added back: ``w + decode(a') - decode(a)``. ``max`` is the largest ``|w . W_enc[:, f]|`` (in the
coefficient: over the block's neurons and all chosen features), s the sign with which the neuron fires on the target. Where the neuron
fires on the target it now writes against the feature.

Deviations:

- The paper has an SAE of each layer's MLP output. The run's SAE reads the residual stream after its block, which is the sum of what all
  blocks so far have written; so the neurons of every block up to there (``blocks``) are encoded with this one SAE, and its features mean
  what the stream holds after block L, not what one MLP has written. A single neuron's vector is not a typical input of such an SAE: its
  encoder bias was fitted to whole activations (TopK SAEs switch on k latents whatever the size), so ``a`` is approximate. The change
  itself, ``(a'_f - a_f) W_dec[f]``, stays along the chosen decoder vectors. With a residual SAE the scale of ``mu`` is not the paper's:
  on the embedded world 36 ruins the model, 2 does nothing, and what forgets in between (5) takes retained people along.
- Features are chosen by rule, as in ``sae_clamp`` (they fire on forget tokens, and on less than ``retain_threshold`` of the retain tokens);
  the paper has them found and checked by models and people: ``latents`` takes such a list. Some of its features are raised instead; here
  all are suppressed.
- Gemma 2 normalises an MLP's output before it is added; as in the reference code, W_out is encoded as it is.

Only trained weights are edited (``model.trainable``; by default the MLP output matrices of the blocks up to the hooked one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from unlearn.config.checks import check
from unlearn.config.schema import TrainableConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.functional.tokens import upcast
from unlearn.latents.features import measure_features
from unlearn.methods.base import Method, MethodContext
from unlearn.methods.sae_clamp import CeilingConfig, choose_below_ceiling
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of, device_of, evaluating
from unlearn.types import NO_ENTITY, LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.models.sae import FrozenSAE

OUTPUTS = ("mlp.down_proj", "mlp.c_proj")
"""Names of an MLP's output layer within a block (Llama, Gemma 2, Qwen, Mistral; GPT-2)."""


@dataclass(frozen=True, kw_only=True)
class PISCESConfig(CeilingConfig):
    """Choice of features and neurons, and strength of the edit."""

    n_features: int = 5
    """most features to choose, >= 1"""
    tau: float = 0.4
    """share of the largest affinity that a neuron has to exceed, in [0, 1); the paper's value for one of its concepts"""
    mu: float = 36.0
    """coefficient after the edit, in multiples of the largest affinity, finite and >= 0; the paper's value for the same concept"""
    signed: bool = True
    """whether the sign with which a neuron fires on the target is taken into account"""
    blocks: int = 0
    """MLPs that are edited, from the hooked block downwards, >= 0; 0 for all of them"""
    ramp: int = 0
    """blocks over which the coefficient grows linearly from 0.1 of mu, >= 0; 0 for none, the paper has 9 for Gemma 2"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.tau < 1, "method.tau", "in [0, 1)", self.tau)
        check(0 <= self.mu < float("inf"), "method.mu", "finite and >= 0", self.mu)
        for name in ("blocks", "ramp"):
            check(getattr(self, name) >= 0, f"method.{name}", ">= 0", getattr(self, name))


def rewrite(sae: FrozenSAE, vectors_ND: Tensor, affinity_NS: Tensor, latents_S: Tensor, tau: float, mu: float, sign_N: Tensor) -> Tensor:
    """Output vectors after the edit, [N, D]; those of neurons that are affine to no feature come back as they are.

    Args:
        sae: the SAE.
        vectors_ND: output vectors of N neurons.
        affinity_NS: ``w . W_enc[:, f]`` of every neuron and chosen feature.
        latents_S: the features.
        tau: share of a feature's largest affinity that a neuron has to exceed.
        mu: coefficient after the edit, in multiples of the largest affinity.
        sign_N: sign with which each neuron fires on the target: -1, 0 or 1.
    """
    size_NS = affinity_NS.abs()
    affine_NS = size_NS > tau * size_NS.amax(0)
    at_M = affine_NS.any(1).nonzero()[:, 0]
    clean_MD = vectors_ND[at_M]
    acts_MF = sae.encode(clean_MD)
    new_MF = acts_MF.clone()
    wanted_MS = (-mu * size_NS.max() * sign_N[at_M, None]).expand(len(at_M), len(latents_S)).to(acts_MF)
    new_MF[:, latents_S] = torch.where(affine_NS[at_M], wanted_MS, acts_MF[:, latents_S])
    edited_MD = clean_MD + sae.decode(new_MF, clean_MD) - sae.decode(acts_MF, clean_MD)
    return vectors_ND.index_put((at_M,), edited_MD.to(vectors_ND.dtype))


def output_layer(block: nn.Module) -> nn.Module:
    """The output layer of a block's MLP; below adapters, if there are any.

    Raises:
        ModelError: the block has none with a name we know.
    """
    modules = dict(block.named_modules())
    found = next((modules[name] for name in OUTPUTS if name in modules), None)
    if found is None:
        raise ModelError(f"A block must have an MLP output layer called {' or '.join(OUTPUTS)}; found none in {type(block).__name__}.")
    inner = getattr(found, "base_layer", found)
    return inner if isinstance(inner, nn.Module) else found


def neuron_vectors(layer: nn.Module) -> Tensor:
    """Output vector of every neuron, [neurons, D], a view of the layer's weight (GPT-2's Conv1D keeps it that way round)."""
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight if isinstance(layer, Conv1D) else weight.T


class PISCES(Method):
    """Turns the neurons that write the target's features against them."""

    name = "pisces"
    family = "sae"
    summary = "MLP neurons that write the SAE features of the forget rows are rewritten to write against them; no training"
    paper = "https://arxiv.org/abs/2505.22586"
    streams = ()
    needs = frozenset({"sae", "rows"})
    search = {
        "method.n_features": {"low": 1, "high": 20, "log": True, "int": True},
        "method.tau": {"low": 0.1, "high": 0.9},
        "method.mu": {"low": 1.0, "high": 100.0, "log": True},
        "method.retain_threshold": {"low": 0.01, "high": 0.3, "log": True},
    }
    Config = PISCESConfig
    config: PISCESConfig

    def __init__(self, config: PISCESConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.sae is None or context.reader is None or context.data is None or context.hook_layer is None:
            raise ValueError("pisces needs sae, rows and hook_layer in its context")
        self.sae, self.reader, self.data, self.layer = context.sae, context.reader, context.data, context.hook_layer
        first = self.layer + 1 - config.blocks if config.blocks else 0
        self.edited = range(max(0, first), self.layer + 1)
        self.latents_S = torch.zeros(0, dtype=torch.long)
        self.signs: dict[int, Tensor] = {}

    def trainable(self, n_blocks: int) -> TrainableConfig | None:
        """MLP output matrices of the blocks that are edited."""
        return TrainableConfig(mode="modules", blocks=f"{self.edited[0]}-{self.edited[-1]}", modules=[r"mlp\.(down_proj|c_proj)\.weight"])

    def forget_layer(self) -> int | None:
        """The hooked block."""
        return self.layer

    def deepest_layer(self) -> int | None:
        """The hooked block."""
        return self.layer

    def setup(self, lm: PreTrainedModel) -> None:
        """Choose the features, and record with which sign the neurons fire on the target."""
        device, bos_id = device_of(lm), self.reader.tokenizer.bos_token_id
        batches = self.reader.batches(self.data.streams["forget"], device)
        forget = measure_features(lm, self.sae, batches, self.layer, bos_id)
        retain = measure_features(lm, self.sae, self.reader.batches(self.data.streams["retain"], device), self.layer, bos_id)
        self.latents_S = choose_below_ceiling(self.config, forget, retain)
        self.signs = self._signs(lm, batches)

    def _signs(self, lm: PreTrainedModel, batches: list[TokenBatch]) -> dict[int, Tensor]:
        """Majority sign of every neuron at the last token of the name (the last prompt token where a row names nobody), by block."""
        votes: dict[int, Tensor] = {}
        place_B = torch.zeros(0, dtype=torch.long)

        def count(block: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                acts_BN = args[0][torch.arange(len(place_B), device=args[0].device), place_B]
                votes[block] = votes.get(block, 0) + acts_BN.sign().sum(0)

            return hook

        handles = [output_layer(blocks_of(lm)[i]).register_forward_pre_hook(count(i)) for i in self.edited]
        try:
            with evaluating(lm):
                for batch in batches:
                    place_B = torch.where(batch.entity_end_B > NO_ENTITY, batch.entity_end_B, (batch.answer_start_B - 1).clamp(min=0))
                    capture(lm, batch, self.layer)
        finally:
            for handle in handles:
                handle.remove()
        return {block: vote.sign().float() for block, vote in votes.items()}

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Zero: there are no gradient steps."""
        return LossTerms(torch.zeros(()), {})

    @torch.no_grad()
    def finish(self, lm: PreTrainedModel) -> None:
        """Rewrite the neurons.

        Raises:
            ConfigError: no MLP output matrix among the blocks is trained.
        """
        layers = {i: output_layer(blocks_of(lm)[i]) for i in self.edited}
        free = {i: layer for i, layer in layers.items() if next(layer.parameters()).requires_grad}
        if not free:
            raise ConfigError(
                f"model.trainable must free an MLP output matrix of blocks {self.edited[0]} to {self.edited[-1]}; found none."
            )
        for block, layer in free.items():
            vectors_ND = neuron_vectors(layer)
            signs_N = self.signs[block] if self.config.signed else torch.ones_like(self.signs[block])
            vectors_ND.copy_(self._edited(upcast(vectors_ND), signs_N, self._strength(block)))

    def _strength(self, block: int) -> float:
        ramp = self.config.ramp
        return self.config.mu * (0.1 + 0.9 * block / ramp if block < ramp else 1.0)

    def _edited(self, vectors_ND: Tensor, signs_N: Tensor, mu: float) -> Tensor:
        affinity_NS = vectors_ND @ self.sae.sae.W_enc[:, self.latents_S.to(self.sae.device)].to(vectors_ND)
        return rewrite(self.sae, vectors_ND, affinity_NS, self.latents_S, self.config.tau, mu, signs_N.to(vectors_ND.device))
