"""Which small model stands for which public one, and which SAEs belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GEMMA_RELEASES = (
    "gemma-scope-2b-pt-res",
    "gemma-scope-2b-pt-res-canonical",
    "gemma-scope-9b-pt-res",
    "gemma-scope-9b-pt-res-canonical",
    "gemma-scope-9b-it-res",
    "gemma-scope-9b-it-res-canonical",
)
"""Releases whose widths sae_lens takes from the name of a folder; the small registry states them."""

WIDTH = 64
"""Width D of every small model."""
COMPONENTS = 24
"""Principal components that a small SAE has, two latents each (+ and -)."""
LATENTS = 2 * COMPONENTS
VOCABULARY = 4096


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A small model: its public name, its kind (gemma2, llama, gpt2), blocks, and (release, id) of its SAEs.

    ``of`` is the base model of an instruction-tuned one: its weights are those of the base, a little changed.
    """

    repo: str
    kind: str
    blocks: int
    saes: tuple[tuple[str, str], ...]
    of: str | None = None


_GEMMA_2B = (
    ("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical"),
    ("gemma-scope-2b-pt-res-canonical", "layer_12/width_65k/canonical"),
)
_GEMMA_9B = (
    ("gemma-scope-9b-pt-res-canonical", "layer_20/width_16k/canonical"),
    ("gemma-scope-9b-pt-res-canonical", "layer_20/width_65k/canonical"),
)
_GEMMA_9B_IT = (
    ("gemma-scope-9b-it-res-canonical", "layer_20/width_16k/canonical"),
    ("gemma-scope-9b-it-res-canonical", "layer_20/width_131k/canonical"),
)
_LLAMA = (("llama_scope_lxr_8x", "l12r_8x"),)
_GPT2 = (("gpt2-small-resid-post-v5-32k", "blocks.8.hook_resid_post"),)

SHAPES: Mapping[str, Shape] = {
    "gemma-2-2b": Shape(repo="google/gemma-2-2b", kind="gemma2", blocks=14, saes=_GEMMA_2B),
    "gemma-2-2b-it": Shape(repo="google/gemma-2-2b-it", kind="gemma2", blocks=14, saes=(), of="gemma-2-2b"),
    "gemma-2-9b": Shape(repo="google/gemma-2-9b", kind="gemma2", blocks=22, saes=_GEMMA_9B),
    "gemma-2-9b-it": Shape(repo="google/gemma-2-9b-it", kind="gemma2", blocks=22, saes=_GEMMA_9B_IT, of="gemma-2-9b"),
    "llama-3.1-8b": Shape(repo="meta-llama/Llama-3.1-8B", kind="llama", blocks=14, saes=_LLAMA),
    "llama-3.1-8b-instruct": Shape(repo="meta-llama/Llama-3.1-8B-Instruct", kind="llama", blocks=14, saes=(), of="llama-3.1-8b"),
    "gpt2-small": Shape(repo="openai-community/gpt2", kind="gpt2", blocks=12, saes=_GPT2),
}
"""By the name of its preset in configs/models/."""
