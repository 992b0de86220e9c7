"""What determines a small language model that learns given rows by heart: its sizes and steps, and its rows."""

from __future__ import annotations

from dataclasses import dataclass

from unlearn.config.checks import check
from unlearn.types import Row


@dataclass(frozen=True, kw_only=True)
class SmallRecipe:
    """Everything but the rows that determines a small model and its SAE."""

    vocabulary: int = 3072
    """entries of the byte-level BPE, >= 300"""
    blocks: int = 4
    """decoder blocks, >= 1"""
    width: int = 256
    """residual width, a multiple of 2 * heads"""
    heads: int = 4
    """attention heads, >= 1"""
    context: int = 512
    """longest text in tokens, >= 2"""
    steps: int = 4300
    """optimiser steps of the language model, >= 1"""
    batch_rows: int = 8
    """rows in a step, >= 1"""
    lr: float = 2e-3
    """peak learning rate of the language model, > 0"""
    strangers_each_epoch: int = 300
    """rows about strangers in a pass over the rows that are learnt, >= 0"""
    sae_layer: int = 1
    """block whose output the SAE reads (0-based)"""
    sae_latents: int = 1024
    """latents of the SAE, >= sae_k"""
    sae_k: int = 32
    """latents that may fire at a position, >= 1"""
    sae_steps: int = 1000
    """optimiser steps of the SAE, >= 1"""
    sae_lr: float = 1e-3
    """learning rate of the SAE, > 0"""

    def __post_init__(self) -> None:
        for name in ("blocks", "heads", "steps", "batch_rows", "sae_k", "sae_steps"):
            check(getattr(self, name) >= 1, f"data.{name}", ">= 1", getattr(self, name))
        check(self.vocabulary >= 300, "data.vocabulary", ">= 300", self.vocabulary)
        check(self.width >= 1 and self.width % (2 * self.heads) == 0, "data.width", "a multiple of 2 * heads", self.width)
        check(self.context >= 2, "data.context", ">= 2", self.context)
        check(self.lr > 0, "data.lr", "> 0", self.lr)
        check(self.sae_lr > 0, "data.sae_lr", "> 0", self.sae_lr)
        check(self.strangers_each_epoch >= 0, "data.strangers_each_epoch", ">= 0", self.strangers_each_epoch)
        check(0 <= self.sae_layer < self.blocks, "data.sae_layer", f"in [0, {self.blocks - 1}]", self.sae_layer)
        check(self.sae_latents >= self.sae_k, "data.sae_latents", f">= sae_k ({self.sae_k})", self.sae_latents)


@dataclass(frozen=True, kw_only=True)
class SmallCorpus:
    """What a small model is trained on.

    ``learnt`` rows are shown in every pass until they are known by heart, ``strangers`` in turn, a few in a pass, so that what is learnt
    about them is the answer to a name that is not known. ``texts`` train the tokenizer, nothing else.
    """

    learnt: tuple[Row, ...]
    strangers: tuple[Row, ...]
    texts: tuple[str, ...]
