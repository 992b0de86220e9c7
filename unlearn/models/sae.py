"""The frozen sparse autoencoder: an sae_lens SAE in fp32 that nothing can train, move to another mode or another precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.config.schema import SAEConfig
from unlearn.errors import ConfigError, ModelError, did_you_mean
from unlearn.models.lm import one_line

ARCHITECTURES = ("standard", "jumprelu", "gated", "topk", "abstopk")
"""sae_lens architectures that can be used; batch-topk SAEs are saved as jumprelu."""

RUNTIME_NORMS = ("constant_norm_rescale", "layer_norm")
"""Input normalisations that are computed from each activation."""

SAE_FILES = ("cfg.json", "sae_weights.safetensors")
"""What a SAELens directory holds."""

_HOOKS: tuple[tuple[str, int], ...] = (
    (r"blocks\.(\d+)\.hook_resid_post", 0),
    (r"blocks\.(\d+)\.hook_resid_pre", -1),
    (r"(?:[\w.]+\.)?(?:layers|h|blocks)\.(\d+)(?:\.output)?", 0),
    (r"(?:[\w.]+\.)?(?:layers|h|blocks)\.(\d+)\.input", -1),
)


def hook_layer(hook_name: str) -> int | None:
    """Block whose output a hook point names; -1 is the input of block 0; None if it is not on the residual stream between blocks.

    >>> [hook_layer(n) for n in ("blocks.12.hook_resid_post", "blocks.12.hook_resid_pre", "model.layers.7", "transformer.h.3.output")]
    [12, 11, 7, 3]
    >>> hook_layer("blocks.2.hook_mlp_out") is None
    True
    """
    for pattern, shift in _HOOKS:
        if found := re.fullmatch(pattern, hook_name):
            return int(found[1]) + shift
    return None


def _layer_of(sae: Any) -> int:
    """Block whose output ``sae`` reads, from its metadata."""
    metadata = sae.cfg.metadata
    names = [str(name) for name in (metadata.hook_name, metadata.hf_hook_name, metadata.hook_point) if name]
    layers = [layer for layer in map(hook_layer, names) if layer is not None]
    if not layers:
        raise ModelError(
            "The SAE's metadata must name the residual stream after a block (such as blocks.12.hook_resid_post or model.layers.12); "
            f"found {', '.join(names) or 'no hook name'}: set sae.layer if you know the block."
        )
    return layers[0]


def _full_precision(device: torch.device) -> Any:
    """A context without autocast; shapes on the meta device take the CPU's."""
    return torch.autocast(device_type="cpu" if device.type == "meta" else device.type, enabled=False)


class FrozenSAE(nn.Module):
    """A trained SAE, fixed: fp32 whatever the precision of the run, always in eval mode, its weights never trainable.

    ``layers`` are the blocks whose outputs it reads (-1: the input of block 0): one, but for a ``RouteSAE``. ``d_in`` and ``d_sae`` are its
    sizes, ``sae`` the sae_lens object. The weights follow the module from device to device, but a module that holds this one does not count
    them among its parameters: optimisers, ``requires_grad_``, DDP and checkpoints do not see them. Gradients flow through to the
    activations. Nothing is remembered from one call to the next (sae_lens keeps an input's norm for the next ``decode``).
    """

    sae: Any

    def __init__(self, sae: Any, layer: int | None = None) -> None:
        """Wrap ``sae`` (an ``sae_lens.SAE``), changing it in place to fp32.

        Args:
            sae: the SAE.
            layer: block whose output it reads; None takes it from the SAE's metadata.

        Raises:
            ModelError: the metadata names no block, or the SAE is of a kind that cannot be used.
        """
        super().__init__()
        self.architecture: str = sae.cfg.architecture()
        if self.architecture not in ARCHITECTURES:
            raise ModelError(f"The SAE's architecture must be one of {', '.join(ARCHITECTURES)}; found {self.architecture}.")
        if sae.cfg.reshape_activations != "none":
            raise ModelError(f"The SAE must read the residual stream; found reshape_activations={sae.cfg.reshape_activations!r}.")
        self.layers: tuple[int, ...] = (_layer_of(sae) if layer is None else layer,)
        self.d_in = int(sae.cfg.d_in)
        self.d_sae = int(sae.cfg.d_sae)
        self.normalisation: str = sae.cfg.normalize_activations
        self.metadata: dict[str, Any] = dict(sae.cfg.metadata.to_dict())
        self.__dict__["sae"] = sae.to(dtype=torch.float32).eval().requires_grad_(False)
        super().train(False)

    @property
    def layer(self) -> int:
        """The one block whose output it reads.

        Raises:
            ConfigError: it reads several.
        """
        if len(self.layers) > 1:
            blocks = ", ".join(map(str, self.layers))
            raise ConfigError(f"sae.route must be null where the output of one block is edited; found an SAE that reads blocks {blocks}.")
        return self.layers[0]

    def read(self, hidden: Mapping[int, Tensor]) -> Tensor:
        """What is encoded, [..., D], of the outputs [..., D] of every block in ``layers``; here the block's output as it is."""
        return hidden[self.layers[0]]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sae.W_enc.device

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The weights, when this very module is asked; none of them requires a gradient."""
        return self.sae.parameters(recurse)

    def requires_grad_(self, requires_grad: bool = True) -> FrozenSAE:
        """Stay without gradients."""
        return self

    def train(self, mode: bool = True) -> FrozenSAE:
        """Stay in eval mode."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenSAE:
        """Let the weights move to another device, but not to another precision."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        self.sae._apply(moved)
        return super()._apply(fn, recurse)

    def _forget(self) -> None:
        """Drop what sae_lens keeps of its last input."""
        for name in ("x_norm_coeff", "ln_mu", "ln_std"):
            self.sae.__dict__.pop(name, None)

    def _input(self, hidden_ND: Tensor) -> Tensor:
        """What the encoder multiplies: normalised, ``b_dec`` subtracted where the SAE does so."""
        try:
            return self.sae.process_sae_in(hidden_ND.float())
        finally:
            self._forget()

    def _affine(self, inner_ND: Tensor, bias_F: Tensor, latents: Tensor | None, scale_F: Tensor | None = None) -> Tensor:
        weight_DF, bias = self.sae.W_enc, bias_F
        if latents is not None:
            weight_DF, bias = weight_DF[:, latents], bias[latents]
            scale_F = None if scale_F is None else scale_F[latents]
        product = inner_ND @ weight_DF
        return (product if scale_F is None else product * scale_F) + bias

    def _before_activation(self, inner_ND: Tensor, latents: Tensor | None) -> Tensor:
        sae = self.sae
        if self.architecture == "gated":
            return self._affine(inner_ND, sae.b_mag, latents, sae.r_mag.exp())
        pre = self._affine(inner_ND, sae.b_enc, latents)
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            norm_F = sae.W_dec.norm(dim=-1)
            pre = pre * (norm_F if latents is None else norm_F[latents])
        return pre

    def preactivations(self, hidden_ND: Tensor, latents: Tensor | None = None) -> Tensor:
        """What the activation function sees, ``x W_enc + b_enc``: [N, F], or [N, S] for ``latents`` (indices in [0, F)).

        Only the selected columns of ``W_enc`` are multiplied. Unlike an activation, a pre-activation has a gradient while its latent is
        off. Gated SAEs give the magnitude path (Rajamanoharan et al., 2404.16014, section 3.2: it shares its direction with the gate);
        TopK SAEs that rescale by decoder norm give the rescaled value, on which the top k are chosen.

        Args:
            hidden_ND: activations [..., D] of any precision.
            latents: indices [S]; None for all.
        """
        with _full_precision(hidden_ND.device):
            return self._before_activation(self._input(hidden_ND), latents)

    def encode(self, hidden_ND: Tensor, latents: Tensor | None = None) -> Tensor:
        """Activations of the latents: [N, F] fp32, or [N, S] for ``latents``.

        ReLU, JumpReLU and gated SAEs multiply only the selected columns; TopK needs all of them to know which are on.
        """
        with _full_precision(hidden_ND.device):
            if latents is None or self.architecture in ("topk", "abstopk"):
                acts_NF: Tensor = self.sae.encode(hidden_ND.float())
                self._forget()
                return acts_NF if latents is None else acts_NF[..., latents]
            inner_ND = self._input(hidden_ND)
            pre_NS = self._before_activation(inner_ND, latents)
            acts_NS = torch.relu(pre_NS)
            if self.architecture == "jumprelu":
                return acts_NS * (pre_NS > self.sae.threshold[latents])
            if self.architecture == "gated":
                return acts_NS * (self._affine(inner_ND, self.sae.b_gate, latents) > 0)
            return acts_NS

    def decode(self, acts_NF: Tensor, hidden_ND: Tensor | None = None) -> Tensor:
        """Reconstruction [N, D] from activations [N, F], fp32.

        Args:
            acts_NF: activations of all latents.
            hidden_ND: the activations that were encoded, whose mean and norm an SAE with runtime normalisation puts back.

        Raises:
            ModelError: the SAE normalises its input and ``hidden_ND`` was not given.
        """
        with _full_precision(acts_NF.device):
            if self.normalisation in RUNTIME_NORMS:
                if hidden_ND is None:
                    raise ModelError(
                        f"decode must be given the encoded activations too: the SAE's normalisation is {self.normalisation}; found none."
                    )
                self.sae.process_sae_in(hidden_ND.float())
            try:
                return self.sae.decode(acts_NF.float())
            finally:
                self._forget()

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Reconstruction of ``hidden_ND`` [N, D], fp32."""
        return self.decode(self.encode(hidden_ND), hidden_ND)


def _from_release(release: str, sae_id: str) -> Any:
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release not in known and "/" not in release:
        raise ModelError(
            f"sae.release must be a release that sae_lens knows, or a hub id owner/name; found {release!r}.{did_you_mean(release, known)}"
        )
    if release in known and sae_id not in known[release].saes_map:
        ids: Sequence[str] = list(known[release].saes_map)
        raise ModelError(
            f"sae.sae_id must be one of the {len(ids)} of {release} (such as {ids[0]}); found {sae_id!r}.{did_you_mean(sae_id, ids)}"
        )
    try:
        return SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
    except Exception as error:  # hub, network and file errors have no common base
        raise ModelError(f"sae.release {release} ({sae_id}) could not be loaded: {one_line(error)}") from error


def from_directory(path: Path) -> Any:
    """The sae_lens SAE of a SAELens directory, fp32, on the CPU.

    Raises:
        ModelError: a file is missing or damaged.
    """
    missing = [name for name in SAE_FILES if not (path / name).is_file()]
    if missing:
        raise ModelError(f"sae.path must be a SAELens directory with {' and '.join(SAE_FILES)}; found no {missing[0]} in {path}.")
    from sae_lens import SAE

    try:
        return SAE.load_from_disk(path, device="cpu", dtype="float32")
    except Exception as error:  # whatever a damaged file leads to
        raise ModelError(f"sae.path {path} could not be loaded: {one_line(error)}") from error


def load_sae(config: SAEConfig, default: Path | None) -> FrozenSAE:
    """The SAE that the configuration names, else the one at ``default``.

    Args:
        config: the ``sae`` section; ``release`` and ``sae_id``, or ``path``, a directory in SAELens's format.
        default: directory of the SAE that the data source brings along.

    Raises:
        ModelError: no SAE is named, the directory or a file is missing or damaged, the release or id is unknown (with a suggestion),
            it cannot be fetched, or its metadata names no block and ``sae.layer`` is null.
    """
    if config.release is not None:
        sae = _from_release(config.release, str(config.sae_id))
    else:
        path = default if config.path is None else Path(config.path).expanduser()
        if path is None:
            raise ModelError("sae.path or sae.release must name an SAE, since the data source brings none; found neither.")
        sae = from_directory(path)
    return FrozenSAE(sae, config.layer)
