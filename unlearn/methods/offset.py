"""Offset unlearning: the model stays as it is, and a small one learns what to subtract from its answers.

Paper: Huang et al., "Offset Unlearning for Large Language Models" (delta-unlearning, arXiv 2404.11045), section 3. With a large model M,
a small one M_o and its trained copy M_o', answers come from the sum of logits ::

    M(x) + alpha * (M_o'(x) - M_o(x))

and any unlearning loss (the paper uses gradient ascent, gradient difference and KL minimisation, among others) is minimised through that
sum; only M_o' changes. Reconstruction: the reference repository was empty when this was written, so training details are those of the inner
method, and alpha = 1.

The weights of M never change, so whoever has them has the knowledge: this acts at inference, like a filter, and is marked as such. The
final weights of a run are those of M_o'.

The small model is one with the same vocabulary (``small``), trained whole. Without one, and this is our choice so that nothing has to be
fetched, it is cut from the model itself: its first ``blocks`` blocks with copies of its final norm and head, of which the copies are
trained and the embeddings are not; at the start both small models are the same, so the sum starts as M either way. What a large model's
family does to its logits (Gemma 2's soft cap) acts on the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig, ModelConfig
from unlearn.errors import ConfigError
from unlearn.methods.base import MethodContext
from unlearn.methods.wrapper import Wrapper, WrapperConfig, inner_class, inner_config
from unlearn.models.decoder import blocks_of, device_of, output_head
from unlearn.models.ensemble import Small, ensemble_of, first_blocks, join, small_of
from unlearn.models.lm import load_lm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from unlearn.types import LossTerms, TokenBatch


@dataclass(frozen=True, kw_only=True)
class OffsetConfig(WrapperConfig):
    """The small model, and how much it has to say."""

    FREE_TEXT: ClassVar[frozenset[str]] = frozenset({"name", "small"})

    small: str | None = None
    """directory or hub id of a small model with the same vocabulary; null cuts one from the model itself"""
    blocks: int = 2
    """blocks of a small model that is cut from the model itself, >= 1 and fewer than it has"""
    alpha: float = 1.0
    """weight of the small models' difference, > 0"""

    def __post_init__(self) -> None:
        check(self.small is None or bool(self.small.strip()), "method.small", "a directory, a hub id or null", self.small)
        check(self.blocks >= 1, "method.blocks", ">= 1", self.blocks)
        check(0 < self.alpha < math.inf, "method.alpha", "a number > 0", self.alpha)


class Offset(Wrapper):
    """Runs a method on the sum of the frozen model and a small one's difference, and trains the small one."""

    name = "offset"
    family = "intervention"
    summary = "leave the model frozen and train a small one whose change is added to its logits"
    paper = "https://arxiv.org/abs/2404.11045"
    streams = ("forget",)
    needs = frozenset({"rows"})
    trains = False
    intervention = True
    sharded = False
    Config = OffsetConfig
    config: OffsetConfig

    def __init__(self, config: OffsetConfig, context: MethodContext) -> None:
        """Build the inner method.

        Raises:
            ConfigError: the inner method's loss is not one on logits, which is all that the small model reaches.
        """
        super().__init__(config, context)
        if self.inner.deepest_layer() is not None or self.inner.forget_layer() is not None:
            raise ConfigError(f"method.inner.name must be a method that forgets through the logits; found {config.inner.name!r}.")
        self.frozen: Small | None = None
        self.tuned: Small | None = None

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """What the inner method needs; the rows' reader too where a second tokenizer must be held against it."""
        inner = inner_class(config).required(inner_config(config))
        return inner | cls.needs if isinstance(config, OffsetConfig) and config.small is not None else inner

    def setup(self, lm: PreTrainedModel) -> None:
        """Make the two small models and put them beside ``lm``, then set up the inner method on the sum.

        Raises:
            ConfigError: ``blocks`` is not fewer than the model has.
            ModelError: the small model cannot be loaded, or its vocabulary is another.
        """
        self.frozen, self.tuned = self._pair(lm)
        join(lm, self.frozen, self.tuned, self.config.alpha)
        super().setup(lm)

    def _pair(self, lm: PreTrainedModel) -> tuple[Small, Small]:
        """The small model twice; of the second, what is trained requires a gradient."""
        c = self.config
        if c.small is not None:
            frozen, tuned = (self._loaded(lm, c.small) for _ in range(2))
            return frozen, tuned.requires_grad_(True)
        n_blocks = len(blocks_of(lm))
        check(c.blocks < n_blocks, "method.blocks", f"fewer than the model's {n_blocks}", c.blocks)
        frozen, tuned = first_blocks(lm, c.blocks).requires_grad_(False), first_blocks(lm, c.blocks)
        shared = {id(p) for p in lm.parameters()}
        for parameter in tuned.parameters():
            parameter.requires_grad_(id(parameter) not in shared)
        return frozen, tuned

    def _loaded(self, lm: PreTrainedModel, path: str) -> Small:
        dtype = str(output_head(lm).weight.dtype).removeprefix("torch.")
        small, tokenizer = load_lm(ModelConfig(path=path, dtype=dtype), None)
        own: Any = self.context.reader.tokenizer if self.context.reader is not None else tokenizer
        if tokenizer.get_vocab() != own.get_vocab():
            raise ConfigError(
                f"method.small must have the vocabulary of the model ({len(own.get_vocab())} entries); "
                f"found another one ({len(tokenizer.get_vocab())} entries) in {path}."
            )
        return small_of(small.to(device_of(lm)))

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """The inner method's terms, through the sum."""
        return self.inner.loss(lm, batch)

    def install(self, lm: PreTrainedModel) -> None:
        """Put the small models beside ``lm``, unless they are there since training began."""
        super().install(lm)
        if ensemble_of(lm) is None and self.frozen is not None and self.tuned is not None:
            join(lm, self.frozen, self.tuned, self.config.alpha)
