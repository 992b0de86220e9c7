"""Weights and optimiser states in 8 or 4 bits, through bitsandbytes (an optional extra), and sentences for where it cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch

from unlearn.config.schema import ModelConfig, OptimConfig
from unlearn.errors import ConfigError, ModelError

OPTIMISERS: Mapping[str, str] = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW32bit", "paged_adamw_8bit": "PagedAdamW8bit"}
"""Classes of ``bitsandbytes.optim``, by ``optim.name`` (Dettmers et al., 2110.02861; paged: QLoRA, 2305.14314 section 3)."""

SHARED_OUT = "fsdp2"


def weights_name(config: ModelConfig) -> str:
    """How precisely the weights are kept, for names of what is read from the model: ``float32``, ``bfloat16 nf4``."""
    return config.dtype if config.quantise is None else f"{config.dtype} {config.quantise}"


def _need(key: str, value: str) -> None:
    """Refuse ``value`` where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{key} '{value}' needs bitsandbytes; found it not installed: pip install 'unlearn[bitsandbytes]'.")


def check_bits(model: ModelConfig, optim: OptimConfig, device: torch.device, strategy: str, trains: bool) -> None:
    """Refuse what cannot work, before anything is loaded.

    Args:
        model: the ``model`` section.
        optim: the ``optim`` section.
        device: where the model is.
        strategy: name of the trainer's strategy.
        trains: whether weights of the model change.

    Raises:
        ConfigError: quantised weights that something else than adapters would change, bitsandbytes or a GPU that is missing, or weights
            that are shared out over processes.
    """
    bits = {"model.quantise": model.quantise, "optim.name": optim.name if optim.name in OPTIMISERS else None}
    for key, value in bits.items():
        if value is None:
            continue
        _need(key, value)
        if strategy == SHARED_OUT:
            raise ConfigError(f"trainer.strategy must not be {SHARED_OUT} with {key} '{value}', which needs whole weights; take ddp.")
    mode = model.trainable.mode
    if model.quantise is not None and trains and (mode != "lora" or model.trainable.embeddings):
        found = f"{mode}, embeddings: true" if model.trainable.embeddings else mode
        raise ConfigError(
            f"model.trainable must be mode: lora and embeddings: false with model.quantise '{model.quantise}', "
            f"whose weights stay frozen; found mode: {found}."
        )
    if optim.name.startswith("paged") and device.type != "cuda":
        raise ConfigError(f"optim.name '{optim.name}' needs a CUDA device, whose memory it pages; found {device.type}: take adamw_8bit.")


def quantised(config: ModelConfig, device: torch.device | str) -> dict[str, Any]:
    """Options of ``from_pretrained`` that load the linear layers of the blocks in few bits, straight onto ``device``; none for null.

    8bit is LLM.int8() (Dettmers et al., 2208.07339), nf4 is QLoRA's 4-bit NormalFloat with double quantisation (2305.14314, section 3).
    Embeddings, norms and output head keep ``model.dtype``, in which is computed too.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if config.quantise is None:
        return {}
    _need("model.quantise", config.quantise)
    from transformers import BitsAndBytesConfig

    if config.quantise == "8bit":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
        )
    return {"quantization_config": how, "device_map": {"": torch.device(device)}}


def check_widths(lm: torch.nn.Module) -> None:
    """Refuse 4-bit layers of widths that bitsandbytes cannot multiply on the CPU.

    Raises:
        ModelError: a layer's input is not a multiple of 64, or its output not one of 32.
    """
    for name, module in lm.named_modules():
        packed = getattr(getattr(module, "weight", None), "quant_state", None)
        if packed is not None and module.weight.device.type == "cpu" and (packed.shape[0] % 32 or packed.shape[1] % 64):
            raise ModelError(
                f"model.quantise 'nf4' needs layers of widths that are multiples of 64 on the CPU; found {tuple(packed.shape)} in {name}."
            )


def make_optimiser(config: OptimConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over ``parameters``, of the kind that ``optim.name`` says.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"lr": config.lr, "betas": (config.betas[0], config.betas[1]), "weight_decay": config.weight_decay}
    if config.name not in OPTIMISERS:
        return torch.optim.AdamW(parameters, **options)
    _need("optim.name", config.name)
    import bitsandbytes

    optimiser: torch.optim.Optimizer = getattr(bitsandbytes.optim, OPTIMISERS[config.name])(parameters, **options)
    return optimiser
