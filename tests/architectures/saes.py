"""SAEs in the files of the public suites, constructed so that they reconstruct: two latents (+ and -) for each principal component."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.architectures.shapes import COMPONENTS, LATENTS
from tests.architectures.texts import corpus
from unlearn.data.tokenize import TokenRow, batches
from unlearn.models.capture import capture
from unlearn.models.sae import hook_layer

SHARE = 0.02
"""JumpReLU thresholds, as a share of the standard deviation of a latent's component."""


def activations(lm: nn.Module, tokenizer: Any, layer: int, lines: int = 120) -> Tensor:
    """Output of block ``layer`` on the made-up texts, [N, D], without the first token of each."""
    bos = tokenizer.bos_token_id
    ids = [[bos, *tokenizer(text, add_special_tokens=False).input_ids] for text in corpus()[:lines]]
    rows = [TokenRow(tuple(row), 1, -1, i) for i, row in enumerate(ids)]
    parts = []
    with torch.no_grad():
        for _, batch in batches(rows, 40, 0):
            real_BT = batch.attention_mask_BT.bool().clone()
            real_BT[:, 0] = False
            parts.append(capture(lm, batch, layer)[real_BT])
    return torch.cat(parts).float()


@dataclass(frozen=True)
class Dictionary:
    """``encode(x) = (x - mean) @ directions.T`` over F ``directions``, on above ``threshold_F``; decoding adds the mean."""

    directions_FD: Tensor
    mean_D: Tensor
    threshold_F: Tensor


def fit(hidden_ND: Tensor) -> Dictionary:
    """The dictionary of the first ``COMPONENTS`` principal components of ``hidden_ND``, with both signs."""
    mean_D = hidden_ND.mean(0)
    _, values_K, basis_KD = torch.linalg.svd(hidden_ND - mean_D, full_matrices=False)
    deviation = (values_K[:COMPONENTS] / len(hidden_ND) ** 0.5).repeat(2)
    return Dictionary(torch.cat([basis_KD[:COMPONENTS], -basis_KD[:COMPONENTS]]), mean_D, SHARE * deviation)


def write_gemma_scope(hidden_ND: Tensor, folder: Path) -> None:
    """``params.npz`` of Gemma Scope (JumpReLU; Lieberum et al., 2408.05147): the encoder's bias holds the mean, nothing is normalised."""
    d = fit(hidden_ND)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "W_enc": d.directions_FD.T,
        "W_dec": d.directions_FD,
        "b_enc": -d.directions_FD @ d.mean_D,
        "b_dec": d.mean_D,
        "threshold": d.threshold_F,
    }
    np.savez(folder / "params.npz", **{name: tensor.contiguous().numpy() for name, tensor in arrays.items()})  # type: ignore[arg-type]


def write_llama_scope(hidden_ND: Tensor, folder: Path, layer: int, factor: float) -> None:
    """Llama Scope's ``hyperparams.json`` and ``checkpoints/final.safetensors`` (He et al., 2410.20526).

    The SAE was trained on activations times ``factor`` (sqrt(D) over their average norm), which sae_lens folds into the weights: encoder
    and decoder are saved for normalised activations, and one threshold serves all latents.
    """
    d, width = fit(hidden_ND), hidden_ND.shape[1]
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings = {
        "d_model": width,
        "d_sae": LATENTS,
        "expansion_factor": LATENTS / width,
        "act_fn": "jumprelu",
        "jump_relu_threshold": float(d.threshold_F.min()) / factor,
        "dataset_average_activation_norm": {"in": width**0.5 / factor, "out": width**0.5 / factor},
        "norm_activation": "dataset-wise",
        "hook_point_in": f"blocks.{layer}.hook_resid_post",
        "hook_point_out": f"blocks.{layer}.hook_resid_post",
        "dtype": "torch.bfloat16",
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
    }
    (folder / "hyperparams.json").write_text(json.dumps(settings), encoding="utf-8")
    weights = {
        "encoder.weight": d.directions_FD / factor,
        "encoder.bias": -d.directions_FD @ d.mean_D,
        "decoder.weight": d.directions_FD.T * factor,
        "decoder.bias": d.mean_D * factor,
    }
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, str(folder / "checkpoints" / "final.safetensors"))


def write_gpt2(hidden_ND: Tensor, folder: Path, layer: int) -> None:
    """A directory as SAELens wrote them before version 6: TopK on layer-normalised activations (Gao et al., 2406.04093)."""
    centred = hidden_ND - hidden_ND.mean(-1, keepdim=True)
    d = fit(centred / (centred.std(-1, keepdim=True) + 1e-5))
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "architecture": "standard",
        "d_in": hidden_ND.shape[1],
        "d_sae": LATENTS,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "hook_layer": layer,
        "hook_head_index": None,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": COMPONENTS},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": False,
        "context_size": 64,
        "dataset_path": "Skylion007/openwebtext",
        "dataset_trust_remote_code": True,
        "normalize_activations": "layer_norm",
    }
    (folder / "cfg.json").write_text(json.dumps(settings), encoding="utf-8")
    weights = {"W_enc": d.directions_FD.T, "W_dec": d.directions_FD, "b_enc": torch.zeros(LATENTS), "b_dec": d.mean_D}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, str(folder / "sae_weights.safetensors"))
    save_file({"sparsity": torch.zeros(LATENTS)}, str(folder / "sparsity.safetensors"))


@cache
def registry() -> dict[str, Any]:
    """What sae_lens itself knows about releases, from the file in its package."""
    from importlib.resources import files

    import yaml

    with files("sae_lens").joinpath("pretrained_saes.yaml").open(encoding="utf-8") as stream:
        found: dict[str, Any] = yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


def entry(release: str, sae_id: str) -> dict[str, Any]:
    """The registry's line about one SAE."""
    return next(line for line in registry()[release]["saes"] if line["id"] == sae_id)


def layer_of(sae_id: str) -> int:
    """Block whose output an SAE of the public suites reads, from its id."""
    known = hook_layer(sae_id)
    return known if known is not None else int(next(_numbers(sae_id)))


def _numbers(text: str) -> Iterator[str]:
    yield from ("".join(c if c.isdigit() else " " for c in text)).split()


def write_sae(lm: nn.Module, tokenizer: Any, release: str, sae_id: str, repository: Path, *, at: int | None = None) -> None:
    """Write the files of one SAE of a release, fitted to ``lm`` at its block (or at block ``at``), into the folder of its repository."""
    known, layer = entry(release, sae_id), layer_of(sae_id)
    hidden_ND = activations(lm, tokenizer, layer if at is None else at)
    folder = repository / known["path"]
    if release.startswith("gemma-scope"):
        write_gemma_scope(hidden_ND, folder)
    elif release.startswith("llama_scope"):
        write_llama_scope(hidden_ND, folder, layer, known["norm_scaling_factor"])
    else:
        write_gpt2(hidden_ND, folder, layer)
