"""Everything that determines a built world, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from unlearn.config.checks import check

RECIPE = 1
"""Raised whenever the same parameters give another world: templates, name inventory, training loop."""


@dataclass(frozen=True, kw_only=True)
class WorldSpec:
    """Parameters of a world: who exists, the language model, its SAEs."""

    n_known: int = 100
    """names in the encyclopaedia, >= 1"""
    n_tail: int = 3000
    """strangers in the corpus, >= 1"""
    n_unknown: int = 1500
    """names in no corpus that training may use, >= 1"""
    n_heldout: int = 300
    """names in no corpus kept for measurement, >= 1"""
    blocks: int = 4
    """decoder blocks, >= 1"""
    width: int = 128
    """residual width, a multiple of heads"""
    heads: int = 4
    """attention heads, >= 1"""
    steps: int = 1350
    """optimiser steps of the language model, >= 1"""
    batch_rows: int = 8
    """packed rows in a step, >= 1"""
    row_tokens: int = 128
    """predicted tokens of a row, >= 16"""
    init_std: float = 0.035
    """standard deviation of the language model's first weights, > 0; larger than usual, which shortens the plateau at the start"""
    lr: float = 3e-3
    """peak learning rate of the language model, > 0"""
    known_first: float = 0.45
    """share of the steps that show known facts only, in [0, 1]"""
    sae_layer: int = 1
    """block whose output the SAEs read (0-based)"""
    sae_latents: int = 512
    """latents of the SAE, >= sae_k"""
    heldout_latents: int = 384
    """latents of the second SAE, which is for measurement only, >= sae_k"""
    sae_k: int = 16
    """latents that may fire at a position, >= 1"""
    sae_steps: int = 1000
    """optimiser steps of each SAE, >= 1"""
    sae_lr: float = 2e-3
    """learning rate of the SAEs, > 0"""
    sae_batch: int = 512
    """activations in a step of an SAE, >= 1"""
    sae_rows: int = 1920
    """packed rows whose activations the SAEs are trained on, >= 1"""

    def __post_init__(self) -> None:
        for name in (
            "n_known",
            "n_tail",
            "n_unknown",
            "n_heldout",
            "blocks",
            "heads",
            "steps",
            "batch_rows",
            "sae_k",
            "sae_steps",
            "sae_batch",
            "sae_rows",
        ):
            check(getattr(self, name) >= 1, f"data.{name}", ">= 1", getattr(self, name))
        check(self.width >= 1 and self.width % (2 * self.heads) == 0, "data.width", "a multiple of 2 * heads", self.width)
        check(self.row_tokens >= 16, "data.row_tokens", ">= 16", self.row_tokens)
        check(self.init_std > 0, "data.init_std", "> 0", self.init_std)
        check(self.lr > 0, "data.lr", "> 0", self.lr)
        check(self.sae_lr > 0, "data.sae_lr", "> 0", self.sae_lr)
        check(0 <= self.known_first <= 1, "data.known_first", "in [0, 1]", self.known_first)
        check(0 <= self.sae_layer < self.blocks, "data.sae_layer", f"in [0, {self.blocks - 1}]", self.sae_layer)
        for name in ("sae_latents", "heldout_latents"):
            check(getattr(self, name) >= self.sae_k, f"data.{name}", f">= sae_k ({self.sae_k})", getattr(self, name))

    def fingerprint(self, seed: int, excluded: tuple[str, ...] = ()) -> str:
        """Hash of the parameters, the recipe, the seed and the names left out of the corpus (16 hex digits)."""
        content = {"recipe": RECIPE, "seed": seed, "excluded": sorted(excluded), **asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
