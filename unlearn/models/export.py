"""A language model written as a folder that needs nothing of this package: weights, configuration, tokenizer."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlearn.config.schema import ModelConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.models.decoder import base_of
from unlearn.models.lm import one_line

if TYPE_CHECKING:
    from torch import nn

WHOLE, ADAPTER, MERGED = "whole", "adapter", "merged"
"""Every weight as trained; the adapters of a LoRA run alone; every weight with the adapters added in."""
DTYPES: tuple[str, ...] = ("float32", "bfloat16", "float16")


def form_of(lm: nn.Module, wanted: str | None) -> str:
    """``whole``, ``adapter`` or ``merged``: what was asked for, else every weight; the adapters of a model whose weights are in few bits.

    Raises:
        ConfigError: ``adapter`` or ``merged`` is asked for and the model has no adapters, or ``merged`` and the weights are in few bits.
    """
    adapted = base_of(lm) is not lm
    if wanted is not None and not adapted:
        raise ConfigError(f"--{wanted} needs a run with model.trainable.mode lora; found one without adapters. Leave the option out.")
    few_bits = getattr(base_of(lm), "quantization_method", None) is not None
    if few_bits and wanted == MERGED:
        raise ConfigError("--merged needs weights in full precision; found a run with model.quantise. Export its adapter, which fits both.")
    return (wanted or (ADAPTER if few_bits else MERGED)) if adapted else WHOLE


@torch.no_grad()
def write_model(lm: nn.Module, form: str, dtype: str, folder: Path) -> None:
    """Write the weights (safetensors), config.json and generation_config.json, or the adapter, to ``folder``.

    The model is used up: adapters are added into the weights in float32 and the sum is rounded once; all weights are cast in place.

    Args:
        lm: the model in its final form, wrapped by peft or not.
        form: from ``form_of``.
        dtype: one of ``DTYPES``.
        folder: where to; exists.

    Raises:
        ModelError: adding the adapters in gives a number that is not finite, or transformers refuses to write.
    """
    model: Any = lm
    target = getattr(torch, dtype)
    if form == MERGED:
        try:
            model = model.float().merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"The adapters must add up with the weights to finite numbers; found: {one_line(error)}") from error
    options: dict[str, Any] = {}
    if form == ADAPTER:
        outer = (base_of(lm).get_input_embeddings(), base_of(lm).get_output_embeddings())  # type: ignore[operator]
        options["save_embedding_layers"] = any(p.requires_grad for module in outer if module is not None for p in module.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of its own deprecated properties, which it reads itself
            model.to(target).save_pretrained(folder, **options)
    except (ValueError, OSError) as error:
        raise ModelError(f"The model must be one that transformers can write to {folder.name}; found: {one_line(error)}") from error


def on_whole_weights(lm: nn.Module, config: ModelConfig) -> nn.Module:
    """The adapters of ``lm`` beside the original model's weights as they came, not in 8 or 4 bits.

    Args:
        lm: adapters on a quantised model.
        config: the ``model`` section, whose path names the original model.
    """
    from peft import PeftModel

    from unlearn.models.lm import load_lm

    model: Any = lm
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        model.save_pretrained(folder)
        base, _ = load_lm(replace(config, quantise=None), None)
        found: nn.Module = PeftModel.from_pretrained(base, folder)
        return found


def write_tokenizer(place: str | Path, config: ModelConfig, folder: Path) -> None:
    """Write the tokenizer as it came with the original model (padding side and special tokens as its makers set them)."""
    from transformers import AutoTokenizer

    revision = "main" if config.tokenizer is not None else config.revision or "main"
    tokenizer = AutoTokenizer.from_pretrained(str(place), revision=revision, trust_remote_code=config.trust_remote_code)
    tokenizer.save_pretrained(folder)


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file, by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
