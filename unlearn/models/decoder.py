"""The parts of a causal language model, found without knowing its family: decoder, blocks, output head.

Names differ (``model.layers``, ``transformer.h``, ``gpt_neox.layers``) and adapters wrap the model once more; everything in this
package goes through these functions instead of naming attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.errors import ModelError

BLOCK_LISTS = ("layers", "h", "blocks", "block")
"""Attribute names under which decoders keep their blocks."""


def base_of(lm: nn.Module) -> nn.Module:
    """The Hugging Face model itself, without the peft wrapper."""
    unwrap = getattr(lm, "get_base_model", None)
    return unwrap() if callable(unwrap) else lm


def decoder_of(lm: nn.Module) -> nn.Module:
    """The module that turns token ids into the final hidden states (no output head).

    Raises:
        ModelError: the model has no list of blocks in a place we know.
    """
    base = base_of(lm)
    get_decoder = getattr(base, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else getattr(base, "base_model", base)
    if not isinstance(decoder, nn.Module) or not any(isinstance(getattr(decoder, name, None), nn.ModuleList) for name in BLOCK_LISTS):
        raise ModelError(
            f"The language model must have a ModuleList of blocks called {', '.join(BLOCK_LISTS)}; found none in {type(base).__name__}."
        )
    return decoder


def block_list_name(decoder: nn.Module) -> str:
    """Name of the attribute of ``decoder`` (from ``decoder_of``) that holds the blocks."""
    return next(name for name in BLOCK_LISTS if isinstance(getattr(decoder, name, None), nn.ModuleList))


def blocks_of(lm: nn.Module) -> nn.ModuleList:
    """The decoder blocks, first to last; peft wrappers are looked through.

    Raises:
        ModelError: the model has no list of blocks in a place we know.
    """
    decoder = decoder_of(lm)
    return getattr(decoder, block_list_name(decoder))


def block_prefix(lm: nn.Module) -> str:
    """What the parameter names of a block start with in ``lm.named_parameters()``, up to the block's number: ``"model.layers."``."""
    blocks = blocks_of(lm)
    return next(f"{name}." for name, module in lm.named_modules() if module is blocks)


def text_config(lm: nn.Module) -> Any:
    """The configuration of the text part of the model."""
    config: Any = base_of(lm).config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def hidden_size(lm: nn.Module) -> int:
    """Width D of the residual stream."""
    return int(text_config(lm).hidden_size)


def device_of(lm: nn.Module) -> torch.device:
    """Device of the first parameter."""
    return next(lm.parameters()).device


def output_head(lm: nn.Module) -> nn.Module:
    """The module that maps final hidden states to the vocabulary.

    Raises:
        ModelError: the model has none.
    """
    found = base_of(lm).get_output_embeddings()  # type: ignore[operator]
    if not isinstance(found, nn.Module):
        raise ModelError(f"The language model must be a causal one with an output head; found {type(base_of(lm)).__name__}.")
    return found


FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
"""Attribute names under which decoders keep the norm between the last block and the head."""


def final_norm(lm: nn.Module) -> nn.Module:
    """The norm between the last block and the output head.

    Raises:
        ModelError: the decoder has none in a place we know.
    """
    decoder = decoder_of(lm)
    for name in FINAL_NORMS:
        found = getattr(decoder, name, None)
        if isinstance(found, nn.Module):
            return found
    raise ModelError(f"The decoder must have a final norm called {', '.join(FINAL_NORMS)}; found none in {type(decoder).__name__}.")


def head(lm: nn.Module, hidden_AD: Tensor, module: nn.Module | None = None) -> Tensor:
    """Logits [A, V] of final hidden states [A, D] (after the final norm), scaled and soft-capped as the model's family does it.

    Logits are ``cap * tanh(x / cap)`` where the configuration has ``final_logit_softcapping`` (Gemma 2, arXiv 2408.00118 section 2),
    multiplied by ``logit_scale`` (Cohere) or divided by ``logits_scaling`` (Granite).

    Args:
        lm: the language model, for its head and configuration.
        hidden_AD: final hidden states; cast to the head's dtype.
        module: a head to use in place of the model's own.
    """
    module = output_head(lm) if module is None else module
    config = text_config(lm)
    logits_AV: Tensor = module(hidden_AD.to(next(module.parameters()).dtype))
    scale, divisor, cap = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
    if scale is not None:
        logits_AV = logits_AV * scale
    if divisor is not None:
        logits_AV = logits_AV / divisor
    if cap is not None:
        logits_AV = cap * torch.tanh(logits_AV / cap)
    return logits_AV


@contextmanager
def in_eval_mode(lm: nn.Module) -> Iterator[None]:
    """Put every module in eval mode; afterwards each module's own mode is back, whatever it was."""
    training = [module for module in lm.modules() if module.training]
    lm.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def evaluating(lm: nn.Module) -> Iterator[None]:
    """Put every module in eval mode and gradients off; afterwards each module's own mode is back, whatever it was."""
    with in_eval_mode(lm), torch.no_grad():
        yield


def adapters_off(lm: nn.Module) -> AbstractContextManager[None]:
    """A context in which a peft model computes what its base model computes; no effect on a model without adapters."""
    disable = getattr(lm, "disable_adapter", None)
    return disable() if callable(disable) else nullcontext()
