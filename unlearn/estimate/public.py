"""Shapes of public models, for estimates before anything is downloaded.

Sources: Gemma 2 (arXiv 2408.00118, table 1), Llama 3 (arXiv 2407.21783, table 3) and the configurations that their authors publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GEMMA_2B = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4}
_GEMMA_9B = {"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8}
_LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
_GEMMA = {"head_dim": 256, "vocab_size": 256000, "sliding_window": 4096, "max_position_embeddings": 8192}
_LLAMA = {"vocab_size": 128256, "max_position_embeddings": 131072}

SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "google/gemma-2-2b": ("gemma2", {**_GEMMA, **_GEMMA_2B}),
    "google/gemma-2-2b-it": ("gemma2", {**_GEMMA, **_GEMMA_2B}),
    "google/gemma-2-9b": ("gemma2", {**_GEMMA, **_GEMMA_9B}),
    "google/gemma-2-9b-it": ("gemma2", {**_GEMMA, **_GEMMA_9B}),
    "meta-llama/Llama-3.1-8B": ("llama", {**_LLAMA, **_LLAMA_8B}),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", {**_LLAMA, **_LLAMA_8B}),
    "openai-community/gpt2": ("gpt2", {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}),
}
"""Hub id -> (model type, keys of its configuration)."""


def public_config(hub_id: str) -> Any:
    """Hugging Face configuration of a public model's shape; None for one that is not listed."""
    from transformers import AutoConfig

    if hub_id not in SHAPES:
        return None
    kind, keys = SHAPES[hub_id]
    return AutoConfig.for_model(kind, **keys)
