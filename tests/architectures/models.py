"""Small models of the true classes, whose blocks each move the residual stream so much that an SAE of one does not fit its neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.architectures.shapes import VOCABULARY, WIDTH, Shape
from unlearn.models.decoder import blocks_of

GROWTH = 1.35
"""Factor from each block's contribution to the next one's."""
RANK = 4
"""Directions that a block writes to."""
TUNED = 0.02
"""Relative change of the weights of an instruction-tuned model against its base."""


def _config(shape: Shape, tokenizer: Any) -> Any:
    """A small configuration of the true class; everything that is not about size is as in the public model."""
    from transformers import Gemma2Config, GPT2Config, LlamaConfig

    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
    }
    if shape.kind == "gemma2":
        special = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
        return Gemma2Config(**sizes, **special, **ids, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    if shape.kind == "llama":
        return LlamaConfig(**sizes, **ids, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=shape.blocks, n_head=4, n_positions=512, initializer_range=0.1, **ids
    )  # fmt: skip


def _narrow(weight: torch.Tensor, scale: float, generator: torch.Generator) -> None:
    """Make a projection [out, in] (or its transpose) write to ``RANK`` directions."""
    rows, columns = weight.shape
    left = torch.randn(rows, RANK, generator=generator)
    right = torch.randn(RANK, columns, generator=generator)
    weight.copy_(scale * left @ right / columns**0.5)


def _spread(lm: nn.Module, kind: str, seed: int) -> None:
    """Let every block write into a few directions of its own, more strongly than the one before."""
    generator = torch.Generator().manual_seed(seed)
    for n, block in enumerate(blocks_of(lm)):
        scale = GROWTH**n
        if kind == "gemma2":  # the norm after the feed-forward part sets its size
            _narrow(block.mlp.down_proj.weight, 1.0, generator)
            block.post_feedforward_layernorm.weight.fill_(scale - 1)
            block.post_attention_layernorm.weight.fill_(0.3 * scale - 1)
        elif kind == "llama":
            _narrow(block.mlp.down_proj.weight, scale, generator)
            block.self_attn.o_proj.weight.mul_(0.3 * scale)
        else:
            _narrow(block.mlp.c_proj.weight, scale, generator)
            block.attn.c_proj.weight.mul_(0.3 * scale)


def small_model(shape: Shape, tokenizer: Any, seed: int) -> Any:
    """A model of the shape's class with random weights, in eval mode; the same for the same seed."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(_config(shape, tokenizer))
    with torch.no_grad():
        _spread(lm, shape.kind, seed)
    return lm.eval()


@torch.no_grad()
def tune(lm: nn.Module, seed: int) -> None:
    """Change every matrix a little, as further training does."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in lm.parameters():
        if parameter.dim() == 2:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=TUNED * float(parameter.std()))
