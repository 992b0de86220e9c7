"""RouteSAE: one SAE for several blocks, and a router that says for every token which of their outputs is encoded.

Shi et al., "Route Sparse Autoencoder to Interpret Large Language Models" (arXiv 2503.08200), section 3. With ``x_i`` block i's output::

    v = sum_i x_i          p = softmax(W v)          i* = argmax_i p_i          encoded: p_i* x_i*

The authors' code, which the defaults follow, standardises every ``x_i`` over its D entries first (mean 0, standard deviation 1 with
Bessel's correction). It multiplies by ``p_i*`` where it trains and measures reconstruction, not where it replaces activations; here the
factor belongs to what is read, everywhere, and ``weighted: false`` leaves it out.

The choice of the block is piecewise constant and is not differentiated: gradients flow through the chosen output and, if ``weighted``,
through the factor ``p_i*`` (which every block in ``layers`` feeds).

**On disk**: a SAELens directory (``cfg.json``, ``sae_weights.safetensors``) with the shared SAE, and beside it

- ``route.json``: ``{"layers": [3, 4], "pool": "sum" | "mean", "normalise": "token" | "none", "weighted": true | false}``, the blocks
  0-based in the order of the router's rows, -1 for the input of block 0;
- ``router.safetensors``: ``router``, the matrix W of shape [len(layers), D].

``convert_checkpoint`` writes such a directory from a file of the authors' training code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearn.errors import ModelError
from unlearn.models.capture import EMBEDDINGS
from unlearn.models.lm import one_line
from unlearn.models.sae import SAE_FILES, FrozenSAE, from_directory

ROUTE_FILES = (*SAE_FILES, "route.json", "router.safetensors")
"""What a RouteSAE's directory holds."""

POOLS, NORMS = ("sum", "mean"), ("token", "none")
FLOOR = 1e-6
"""Added to the standard deviation, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What the router reads and what becomes of the chosen output."""

    layers: tuple[int, ...]
    """blocks, 0-based, ascending; -1 is the input of block 0"""
    pool: str = "sum"
    """sum or mean over the blocks, which the router sees"""
    normalise: str = "token"
    """token (every output is standardised over its D entries) or none"""
    weighted: bool = True
    """whether the chosen output is multiplied by its probability"""

    def __post_init__(self) -> None:
        whole = all(isinstance(layer, int) and layer >= EMBEDDINGS for layer in self.layers)
        good = {
            "layers": whole and len(self.layers) >= 2 and list(self.layers) == sorted(set(self.layers)),
            "pool": self.pool in POOLS,
            "normalise": self.normalise in NORMS,
            "weighted": isinstance(self.weighted, bool),
        }
        wanted = {"layers": "two or more ascending block numbers", "pool": "sum or mean", "normalise": "token or none"}
        for name, is_good in good.items():
            if not is_good:
                raise ModelError(f"{name} of a RouteSAE must be {wanted.get(name, 'true or false')}; found {getattr(self, name)!r}.")


def route(hidden_NLD: Tensor, router_LD: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """What is encoded, [..., D], and the index in [0, L) of the block it comes from, [...].

    Args:
        hidden_NLD: outputs of the L blocks, [..., L, D], fp32.
        router_LD: the matrix W.
        routing: the blocks and the options.

    >>> x = torch.tensor([[[3.0, 0.0], [1.0, 2.0]]])  # v = [4, 2], W v = [0, ln 3], p = [1/4, 3/4]
    >>> router = torch.tensor([[0.0, 0.0], [0.0, 0.5493061]])
    >>> routed, chosen = route(x, router, Routing(layers=(0, 1), normalise="none"))
    >>> routed, chosen
    (tensor([[0.7500, 1.5000]]), tensor([1]))
    """
    if routing.normalise == "token":
        hidden_NLD = (hidden_NLD - hidden_NLD.mean(-1, keepdim=True)) / (hidden_NLD.std(-1, keepdim=True) + FLOOR)
    pooled_ND = hidden_NLD.sum(-2) if routing.pool == "sum" else hidden_NLD.mean(-2)
    weight_N, chosen_N = (pooled_ND @ router_LD.T).softmax(-1).max(-1)
    index = chosen_N[..., None, None].expand(*chosen_N.shape, 1, hidden_NLD.shape[-1])
    picked_ND = hidden_NLD.gather(-2, index).squeeze(-2)
    return (picked_ND * weight_N[..., None] if routing.weighted else picked_ND), chosen_N


class RouteSAE(FrozenSAE):
    """A frozen SAE that reads several blocks: ``read`` routes, everything else works on what it gives, [..., D]."""

    def __init__(self, sae: Any, router_LD: Tensor, routing: Routing) -> None:
        """Wrap the shared ``sae`` (an ``sae_lens.SAE``), changing it in place to fp32.

        Raises:
            ModelError: the router's shape does not fit, or the SAE is of a kind that cannot be used.
        """
        wanted = (len(routing.layers), int(sae.cfg.d_in))
        if tuple(router_LD.shape) != wanted:
            raise ModelError(f"The router of a RouteSAE must be of shape {wanted} (blocks, width); found {tuple(router_LD.shape)}.")
        sae.register_buffer("router_LD", router_LD.detach().clone(), persistent=False)  # follows the SAE from device to device
        super().__init__(sae, routing.layers[-1])
        self.layers = routing.layers
        self.routing = routing

    def _route(self, hidden: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        hidden_NLD = torch.stack([hidden[layer].float() for layer in self.layers], dim=-2)
        with torch.autocast(device_type=hidden_NLD.device.type, enabled=False):
            return route(hidden_NLD, self.sae.router_LD, self.routing)

    def read(self, hidden: Mapping[int, Tensor]) -> Tensor:
        """The chosen block's output as the SAE sees it (standardised, weighted), [..., D] fp32, of outputs [..., D] by block."""
        return self._route(hidden)[0]

    def choice(self, hidden: Mapping[int, Tensor]) -> Tensor:
        """Index in ``layers`` of the block that is read, [...], of outputs [..., D] by block."""
        return self._route(hidden)[1]


def save_route_sae(folder: Path, sae: Any, router_LD: Tensor, routing: Routing) -> None:
    """Write the directory that ``load_route_sae`` reads; ``sae`` is the shared ``sae_lens.SAE``."""
    sae.save_model(folder)
    save_file({"router": router_LD.detach().float().contiguous().cpu()}, folder / "router.safetensors")
    (folder / "route.json").write_text(json.dumps(asdict(routing), indent=1) + "\n", encoding="utf-8")


def read_routing(folder: Path) -> Routing:
    """``route.json`` of a RouteSAE's directory.

    Raises:
        ModelError: a file of the directory is missing, or ``route.json`` is damaged or holds what it must not.
    """
    missing = [name for name in ROUTE_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"sae.route must be a RouteSAE's directory with {', '.join(ROUTE_FILES)}; found no {missing[0]} in {folder}.")
    try:
        facts = json.loads((folder / "route.json").read_text(encoding="utf-8"))
        return Routing(**{**facts, "layers": tuple(facts["layers"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / 'route.json'} must hold layers, pool, normalise and weighted; found {one_line(error)}.") from error


def load_route_sae(folder: Path) -> RouteSAE:
    """The RouteSAE in ``folder``, on the CPU.

    Raises:
        ModelError: a file is missing, damaged or does not fit the others.
    """
    routing = read_routing(folder)
    try:
        router_LD = load_file(folder / "router.safetensors")["router"]
    except (SafetensorError, OSError, KeyError) as error:
        raise ModelError(f"{folder / 'router.safetensors'} must hold the matrix 'router'; found {one_line(error)}.") from error
    return RouteSAE(from_directory(folder), router_LD, routing)


def shared_topk(*, encoder_DF: Tensor, b_enc_F: Tensor, decoder_FD: Tensor, b_dec_D: Tensor, k: int) -> Any:
    """An ``sae_lens`` TopK SAE of these weights: ``TopK((x - b_dec) W_enc + b_enc)``, decoded by ``W_dec`` and ``b_dec``."""
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=encoder_DF.shape[0], d_sae=encoder_DF.shape[1], k=k, apply_b_dec_to_input=True))
    weights = {"W_enc": encoder_DF, "b_enc": b_enc_F, "W_dec": decoder_FD, "b_dec": b_dec_D}
    sae.load_state_dict({name: tensor.detach().float().contiguous().clone() for name, tensor in weights.items()})
    return sae


def convert_checkpoint(file: Path, folder: Path, *, n_blocks: int, k: int, pool: str = "sum") -> None:
    """Write a RouteSAE's directory from what the authors' training code saves (github.com/swei2001/RouteSAEs).

    That file is a bare state dict: what it was trained with (k, the pooling) is in its name only. The authors read
    ``hidden_states[n_blocks // 4 : 3 * n_blocks // 4 + 1]``, whose entry j is the output of block j - 1. Their TopK has no ReLU and
    sae_lens's has: they differ where fewer than k pre-activations are positive.

    Args:
        file: the ``.pt`` file.
        folder: directory that is written.
        n_blocks: decoder blocks of the language model.
        k: latents that may fire on a token.
        pool: sum or mean.

    Raises:
        ModelError: the file cannot be read, is no such checkpoint, or is one of a model with another number of blocks.
    """
    try:
        found: dict[str, Tensor] = torch.load(file, weights_only=True, map_location="cpu")
        router_LD, encoder_FD, decoder_DF = found["router.weight"], found["sae.encoder.weight"], found["sae.decoder.weight"]
        b_dec_D, b_enc_F = found["sae.pre_bias"], found["sae.latent_bias"]
    except Exception as error:  # torch.load has no error of its own
        raise ModelError(f"{file} must be a RouteSAE's state dict; found {one_line(error)}.") from error
    layers = tuple(range(n_blocks // 4 - 1, n_blocks * 3 // 4))
    if len(layers) != len(router_LD):
        raise ModelError(
            f"A RouteSAE of a model with {n_blocks} blocks must have a router of {len(layers)} rows; found {len(router_LD)} in {file}."
        )
    sae = shared_topk(encoder_DF=encoder_FD.T, b_enc_F=b_enc_F, decoder_FD=decoder_DF.T, b_dec_D=b_dec_D, k=k)
    save_route_sae(folder, sae, router_LD, Routing(layers=layers, pool=pool))
