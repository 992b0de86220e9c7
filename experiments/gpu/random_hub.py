"""Models and SAEs of the public shapes and formats with random weights, laid out as the hub cache lays them out.

They stand under their public names, so that presets load them through the code that a user's run takes. Numbers that come of them mean
nothing; times and memory do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.architectures.saes import entry, registry
from tests.architectures.vocabularies import tokenizer_for
from unlearn.estimate.public import public_config

REVISION = "0" * 40
TINY = {"intermediate_size": 128, "num_hidden_layers": 14, "vocab_size": 4096, "head_dim": 8}
"""In the place of the true sizes, to try the scripts out; the width of Gemma stays, which sae_lens knows."""


def snapshot(cache: Path, repo: str) -> Path:
    """Folder of a repository's files in a hub cache."""
    home = cache / f"models--{repo.replace('/', '--')}"
    folder = home / "snapshots" / REVISION
    for place in (folder, home / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(REVISION, encoding="utf-8")
    return folder


def write_model(cache: Path, repo: str, device: str, tiny: bool) -> Any:
    """A model of the public shape, bfloat16, with a small tokenizer of its family; gives its configuration."""
    from transformers import AutoModelForCausalLM

    config = public_config(repo)
    if tiny:
        config.update({**TINY, **({"hidden_size": 64} if config.model_type == "llama" else {})})
        config.layer_types = None if getattr(config, "layer_types", None) is None else config.layer_types[: TINY["num_hidden_layers"]]
    tokenizer = tokenizer_for(config.model_type, chat=False)
    config.update({"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id})
    torch.manual_seed(0)
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder = snapshot(cache, repo)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return config


def write_sae(cache: Path, release: str, sae_id: str, width: int, latents: int) -> None:
    """An SAE with random weights in the files of Gemma Scope or Llama Scope; its thresholds let about one latent in 200 through."""
    known, random = entry(release, sae_id), np.random.default_rng(0)
    folder = snapshot(cache, registry()[release]["repo_id"]) / known["path"]
    encoder = (random.standard_normal((width, latents), np.float32) / width**0.5).astype(np.float32)
    zero, bias = np.zeros(latents, np.float32), np.zeros(width, np.float32)
    if release.startswith("gemma-scope"):
        folder.mkdir(parents=True, exist_ok=True)
        decoder, threshold = np.ascontiguousarray(encoder.T), np.full(latents, 2.6, np.float32)
        np.savez(folder / "params.npz", W_enc=encoder, W_dec=decoder, b_enc=zero, b_dec=bias, threshold=threshold)
        return
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings = {
        "d_model": width, "d_sae": latents, "expansion_factor": latents / width, "act_fn": "jumprelu", "jump_relu_threshold": 0.5,
        "dataset_average_activation_norm": {"in": 8.0, "out": 8.0}, "norm_activation": "dataset-wise",
        "hook_point_in": "blocks.12.hook_resid_post", "hook_point_out": "blocks.12.hook_resid_post", "dtype": "torch.bfloat16",
        "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False,
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(settings), encoding="utf-8")
    weights = {"encoder.weight": encoder.T, "encoder.bias": zero, "decoder.weight": encoder, "decoder.bias": bias}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).bfloat16() for name, array in weights.items()}
    save_file(tensors, str(folder / "checkpoints" / "final.safetensors"))
