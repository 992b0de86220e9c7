"""CRISP: train the weights until the SAE features of the target stay silent.

Paper: Ashuach, Arad, Mueller, Tutek & Belinkov, "CRISP: Persistent Concept Unlearning via Sparse Autoencoders" (arXiv 2508.13650), and its
code (github.com/tomerashuach/CRISP). Chosen once, on the original model: the ``features`` latents per SAE that fire on more forget than
retain tokens and whose summed activation is ``min_ratio`` times as large. Loss::

    (1 - beta) * unlearn + beta * retain + beta * gamma * coherence

``unlearn`` is the mean of the positive activations of the chosen features, after ``|alpha * mean(pre-activations)|`` was added to their
pre-activations wherever the original model had them on: a feature just pushed below its threshold would otherwise have no gradient.
``retain`` is the mean squared change of the SAEs' input on retain rows, ``coherence`` that of the final hidden state on neutral text.

Deviations, each with a way back:

- The reference code hands the SAE of block L the hidden state with index L, which is the *input* of that block, while these SAEs were
  trained on its output. Here the SAE reads the output; ``hook: published`` reads one block too early, as the code does.
- Counts and sums are compared over equally many tokens (retain statistics scaled to the forget rows' token count); the code takes equally
  many texts. Where no feature reaches ``min_ratio``, the best by count are taken with a warning; the code would then train on nothing.
- The mean squared errors run over the tokens that are there; the code zeroes padding and the first token and divides by all positions, so
  that padding shrinks the loss: ``compat: true``.
- For TopK and gated SAEs a lifted feature is ReLU of its lifted pre-activation: it does not compete for a place among the k.
- Neutral text is the source's generic text, of which every step takes one, in turn; the code has hand-written prompts.

The paper trains LoRA (rank 4, alpha 8, dropout 0.05, all linear maps of blocks 3 to 9) with AdamW at 1e-5: ``model.trainable.mode: lora``.
One SAE is the run's; ``extra_saes`` adds those of other layers (the paper has one for every other layer).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig, SAEConfig
from unlearn.data.tokenize import collate, text_rows
from unlearn.errors import ConfigError
from unlearn.functional.ranks import mean, ratio
from unlearn.functional.tokens import upcast
from unlearn.latents.features import by_count, measure_features
from unlearn.methods.base import Method, MethodContext
from unlearn.models.capture import capture_layers
from unlearn.models.decoder import decoder_of, device_of, evaluating
from unlearn.models.sae import FrozenSAE, load_sae
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

HOOKS = ("output", "published")


@dataclass(frozen=True, kw_only=True)
class CRISPConfig(MethodConfig):
    """Choice of the features, and the weights of the loss."""

    features: int = 10
    """features per SAE (k), >= 1"""
    min_ratio: float = 3.0
    """least ratio of summed activations, forget / (retain + 1), finite and >= 0"""
    alpha: float = 5.0
    """lift of the pre-activations, in multiples of their mean, finite and >= 0"""
    beta: float = 0.99
    """weight of keeping against unlearning, in [0, 1]"""
    gamma: float = 0.01
    """weight of coherence relative to retain, finite and >= 0"""
    coherence_texts: int = 16
    """neutral texts, taken in turn, >= 1"""
    hook: str = "output"
    """output (the SAE reads its block's output) or published (its input, as the reference code has it)"""
    extra_saes: list[str] = field(default_factory=list)
    """further SAEs: SAELens directories, or release:sae_id"""
    compat: bool = False
    """whether padding and the first token count, as zeros, in the mean squared errors, as in the reference code"""

    def __post_init__(self) -> None:
        check(self.features >= 1, "method.features", ">= 1", self.features)
        check(self.coherence_texts >= 1, "method.coherence_texts", ">= 1", self.coherence_texts)
        check(0 <= self.beta <= 1, "method.beta", "in [0, 1]", self.beta)
        for name in ("min_ratio", "alpha", "gamma"):
            check(0 <= getattr(self, name) < float("inf"), f"method.{name}", "finite and >= 0", getattr(self, name))
        one_of(self.hook, HOOKS, "method.hook")


@lru_cache(maxsize=32)
def extra_sae(spec: str) -> FrozenSAE:
    """The SAE that an entry of ``extra_saes`` names: ``release:sae_id``, or a SAELens directory.

    Raises:
        ModelError: it cannot be loaded.
    """
    release, colon, sae_id = spec.partition(":")
    named = bool(colon) and not spec.startswith((".", "/", "~"))
    return load_sae(SAEConfig(release=release, sae_id=sae_id) if named else SAEConfig(path=spec), None)


def lifted_activations(sae: FrozenSAE, hidden_ND: Tensor, latents_S: Tensor, on_NS: Tensor, alpha: float) -> Tensor:
    """Activations of ``latents_S`` [N, S], lifted by ``|alpha * mean_F(pre)|`` where ``on_NS``, as they are elsewhere.

    Args:
        sae: the SAE.
        hidden_ND: what it reads.
        latents_S: chosen latents.
        on_NS: where the original model had them on.
        alpha: strength of the lift.
    """
    pre_NF = sae.preactivations(hidden_ND)
    lifted_NS = pre_NF[:, latents_S] + (alpha * pre_NF.mean(-1, keepdim=True)).abs()
    raised_NS = lifted_NS.relu()
    if sae.architecture == "jumprelu":
        raised_NS = raised_NS * (lifted_NS > sae.sae.threshold[latents_S])
    return torch.where(on_NS, raised_NS, sae.encode(hidden_ND, latents_S))


def positive_mean(acts_NS: Tensor) -> Tensor:
    """Mean over the positive entries, a scalar >= 0; 0 (with a graph) where there is none.

    >>> positive_mean(torch.tensor([[0.0, 2.0], [4.0, -1.0]]))
    tensor(3.)
    """
    positive_NS = acts_NS.relu()
    return ratio(positive_NS.sum(), (acts_NS > 0).sum())


def hidden_mse(after_BTD: Tensor, before_BTD: Tensor, mask_BT: Tensor, compat: bool = False) -> Tensor:
    """Mean squared change over the positions of ``mask_BT`` and all coordinates, a scalar >= 0.

    >>> hidden_mse(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([[True, False]]), compat=True)
    tensor(0.5000)

    Args:
        after_BTD: hidden states of the trained model.
        before_BTD: those of the original model.
        mask_BT: positions that count.
        compat: divide by all positions, masked ones included.
    """
    squared_BT = (upcast(after_BTD) - upcast(before_BTD)).square().mean(-1) * mask_BT
    return mean(squared_BT) if compat else ratio(squared_BT.sum(), mask_BT.sum())


def inner_tokens(batch: TokenBatch) -> Tensor:
    """Tokens after the first one of each row, [B, T]."""
    mask_BT = batch.attention_mask_BT.bool().clone()
    mask_BT[:, 0] = False
    return mask_BT


class CRISP(Method):
    """Silences the target's features and holds hidden states elsewhere."""

    name = "crisp"
    family = "sae"
    summary = "train until the SAE features of the forget rows stay silent; hidden states kept on retain rows and neutral text"
    paper = "https://arxiv.org/abs/2508.13650"
    streams = ("forget", "retain")
    needs = frozenset({"sae", "rows", "reference_hidden"})
    reference_streams = ("forget", "retain")
    search = {
        "method.features": {"low": 5, "high": 80, "log": True, "int": True},
        "method.alpha": {"low": 1.0, "high": 20.0, "log": True},
        "method.beta": {"low": 0.05, "high": 0.99},
    }
    Config = CRISPConfig
    config: CRISPConfig

    def __init__(self, config: CRISPConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.sae is None or context.reader is None or context.data is None or context.reference is None or context.hook_layer is None:
            raise ValueError("crisp needs sae, rows, reference and hook_layer in its context")
        self.reader, self.data, self.reference = context.reader, context.data, context.reference
        self.saes = (context.sae, *map(extra_sae, config.extra_saes))
        self.moved = torch.nn.ModuleList(self.saes)
        self.layers = self.reference_layers(config, context.hook_layer, context.n_blocks)
        self.latents: list[Tensor] = []
        self.neutral: list[tuple[TokenBatch, Tensor]] = []
        self.step = 0

    @classmethod
    def reference_layers(cls, config: MethodConfig, hook_layer: int, n_blocks: int) -> tuple[int, ...]:
        """Blocks whose output each SAE is given, in the order of the SAEs.

        Raises:
            ConfigError: an SAE reads the input of the first block, which no block's weights reach.
        """
        if not isinstance(config, CRISPConfig):
            return (hook_layer,)
        shift = int(config.hook == "published")
        layers = tuple(layer - shift for layer in (hook_layer, *(extra_sae(spec).layer for spec in config.extra_saes)))
        if min(layers) < 0:
            raise ConfigError(f"method.hook must leave every SAE a block to read after; found {config.hook!r} with an SAE at block 0.")
        return layers

    def forget_layer(self) -> int | None:
        """The highest block that an SAE reads."""
        return max(self.layers)

    def deepest_layer(self) -> int | None:
        """The logits' depth with the coherence term, else the highest block that an SAE reads."""
        return None if self.config.beta * self.config.gamma else max(self.layers)

    def setup(self, lm: PreTrainedModel) -> None:
        """Choose the features, and remember the final hidden states of the neutral texts.

        Raises:
            ConfigError: ``gamma`` is above 0 and the source has no generic text.
        """
        self.latents = [self._choose(lm, sae, layer) for sae, layer in zip(self.saes, self.layers, strict=True)]
        self.neutral = []
        if not self.config.beta * self.config.gamma:
            return
        if not self.data.generic:
            raise ConfigError(f"method.gamma must be 0 for a source without generic texts; found {self.config.gamma}.")
        with evaluating(lm):
            for row in self.reader.tokens(text_rows(self.data.generic[: self.config.coherence_texts], first_id=-1)):
                batch = TokenBatch(*(t.to(device_of(lm)) for t in collate([row], self.reader.pad_id)))
                self.neutral.append((batch, self._final(lm, batch)))

    def _choose(self, lm: PreTrainedModel, sae: FrozenSAE, layer: int) -> Tensor:
        bos_id = self.reader.tokenizer.bos_token_id
        forget, retain = (
            measure_features(lm, sae, self.reader.batches(self.data.streams[s], device_of(lm)), layer, bos_id) for s in ("forget", "retain")
        )
        retain = retain.on(forget.tokens)
        chosen_S = by_count(forget, retain, self.config.features, self.config.min_ratio)
        if not len(chosen_S):
            warnings.warn(f"method.min_ratio {self.config.min_ratio} leaves no feature; the best by count are taken.", stacklevel=2)
            chosen_S = by_count(forget, retain, self.config.features)
        return chosen_S

    @staticmethod
    def _final(lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
        out = decoder_of(lm)(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
        hidden_BTD: Tensor = out.last_hidden_state
        return hidden_BTD

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Know whose turn it is among the neutral texts."""
        self.step = step

    def forget(self, lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
        """Mean positive activation of the chosen features, lifted, averaged over the SAEs."""
        mask_BT, hidden = inner_tokens(batch), capture_layers(lm, batch, tuple(dict.fromkeys(self.layers)))
        parts = []
        for sae, layer, chosen_S in zip(self.saes, self.layers, self.latents, strict=True):
            latents_S = chosen_S.to(mask_BT.device)
            with torch.no_grad():
                on_NS = sae.encode(self.reference.hidden(batch, layer)[mask_BT], latents_S) > 0
            parts.append(positive_mean(lifted_activations(sae, hidden[layer][mask_BT], latents_S, on_NS, self.config.alpha)))
        return torch.stack(parts).mean()

    def retain(self, lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
        """Mean squared change of what the SAEs read."""
        layers = tuple(dict.fromkeys(self.layers))
        hidden, mask_BT = capture_layers(lm, batch, layers), inner_tokens(batch)
        return torch.stack([hidden_mse(hidden[i], self.reference.hidden(batch, i), mask_BT, self.config.compat) for i in layers]).mean()

    def coherence(self, lm: PreTrainedModel) -> Tensor:
        """Mean squared change of the final hidden state on one neutral text."""
        batch, before_BTD = self.neutral[self.step % len(self.neutral)]
        batch = TokenBatch(*(t.to(device_of(lm)) for t in batch))
        after_BTD = self._final(lm, batch)
        return hidden_mse(after_BTD, before_BTD.to(after_BTD.device), inner_tokens(batch), self.config.compat)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, ``retain``, ``coherence``, all before weighting."""
        c = self.config
        terms = {"forget": self.forget(lm, batch["forget"]), "retain": self.retain(lm, batch["retain"])}
        total = (1 - c.beta) * terms["forget"] + c.beta * terms["retain"]
        if self.neutral:
            terms["coherence"] = self.coherence(lm)
            total = total + c.beta * c.gamma * terms["coherence"]
        return LossTerms(total, terms)
