"""Does the SAE read where it says it does? Measured before training, since a wrong hook point only shows as a bad result later."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.errors import ModelError
from unlearn.models.capture import EMBEDDINGS, capture_layers, check_layer
from unlearn.models.decoder import base_of, blocks_of, evaluating, hidden_size
from unlearn.models.route_sae import RouteSAE
from unlearn.models.sae import FrozenSAE
from unlearn.types import TokenBatch

BETTER = 0.8
"""A neighbour is clearly better when its FVU is below this share of the declared layer's ..."""

MARGIN = 0.005
"""... and lower by at least this much."""

CHUNK = 2048
"""Tokens that are encoded at once."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class HookReport:
    """What the SAE makes of the declared layer and its neighbours (-1: the embeddings).

    ``fvu`` is the fraction of variance unexplained (>= 0, 0 is perfect), ``l0`` the mean number of latents that are on per token,
    ``best`` the layer with the lowest FVU. Where the SAE reads several blocks, a layer stands for the deepest of them: what is measured is
    the routed activation, from the declared blocks and from all of them moved by one. ``shares`` is the share of tokens, in [0, 1], that is
    read from each declared block.
    """

    layer: int
    fvu: dict[int, float]
    l0: dict[int, float]
    best: int
    shares: dict[int, float] = field(default_factory=dict)


@dataclass
class _Sums:
    """Running sums over tokens, in float64."""

    x_D: Tensor
    tokens: int = 0
    squares: float = 0.0
    errors: float = 0.0
    on: float = 0.0
    offset_D: Tensor | None = None

    def add(self, sae: FrozenSAE, hidden_ND: Tensor) -> None:
        for part_ND in hidden_ND.float().split(CHUNK) if len(hidden_ND) else ():
            acts_NF = sae.encode(part_ND)
            error_ND = part_ND - sae.decode(acts_NF, part_ND)
            wide_ND = part_ND.cpu().double()
            if self.offset_D is None:
                self.offset_D = wide_ND[0]
            wide_ND = wide_ND - self.offset_D
            self.x_D += wide_ND.sum(0)
            self.squares += float(wide_ND.square().sum())
            self.errors += float(error_ND.cpu().double().square().sum())
            self.on += float((acts_NF != 0).sum())
            self.tokens += len(part_ND)

    def fvu(self) -> float:
        variance = self.squares - float(self.x_D.square().sum()) / self.tokens
        return self.errors / variance if variance > 0 else float("inf")


def measure_hook_point(lm: nn.Module, sae: FrozenSAE, batches: Sequence[TokenBatch], layer: int) -> HookReport:
    """FVU and L0 of the SAE at ``layer`` (its deepest, where it reads several) and the layers beside it, in one pass per batch.

    ``FVU = sum ||x - x_hat||^2 / sum ||x - mean(x)||^2`` over real tokens. The first token of each row is left out: it is BOS,
    or, where there is none, the token that takes its part as an attention sink, with a norm that would drown the others.

    Raises:
        ModelError: the SAE's width is not the model's, the layer is out of range, or there is no token to measure on.
    """
    width = hidden_size(lm)
    if sae.d_in != width:
        raise ModelError(f"The SAE must read activations of the model's width {width}; found d_in={sae.d_in}: it belongs to another model.")
    sites = _sites(lm, sae, layer)
    layers = sorted({n for site in sites.values() for n in site.values()})
    sums = {n: _Sums(torch.zeros(width, dtype=torch.float64)) for n in sites}
    read_L = torch.zeros(len(sae.layers), dtype=torch.long)
    with evaluating(lm):
        for batch in batches:
            real_BT = batch.attention_mask_BT.bool().clone()
            real_BT[:, 0] = False
            hidden = {n: hidden_BTD[real_BT] for n, hidden_BTD in capture_layers(lm, batch, layers).items()}
            for n, site in sites.items():
                found = {own: hidden[there] for own, there in site.items()}
                sums[n].add(sae, sae.read(found))
                if n == layer:
                    read_L += _read_from(sae, found)
    if not sums[layer].tokens:
        raise ModelError("The hook-point check must have rows of at least two tokens; found none.")
    fvu = {n: s.fvu() for n, s in sums.items()}
    shares = {own: int(n) / sums[layer].tokens for own, n in zip(sites[layer].values(), read_L, strict=True)}
    return HookReport(layer, fvu, {n: s.on / s.tokens for n, s in sums.items()}, min(fvu, key=lambda n: fvu[n]), shares)


def _sites(lm: nn.Module, sae: FrozenSAE, layer: int) -> dict[int, dict[int, int]]:
    """Blocks that stand for the SAE's own: moved to end at ``layer``, and at the layers beside it where the model has them all."""
    moved = {n: {own: own + n - max(sae.layers) for own in sae.layers} for n in (layer - 1, layer, layer + 1)}
    for there in moved[layer].values():
        check_layer(lm, there, "sae.layer" if len(sae.layers) == 1 else "every block of sae.route")
    last = len(blocks_of(lm)) - 1
    return {n: site for n, site in moved.items() if all(EMBEDDINGS <= there <= last for there in site.values())}


def _read_from(sae: FrozenSAE, hidden: dict[int, Tensor]) -> Tensor:
    """Tokens that are read from each of the SAE's blocks, [L]."""
    if isinstance(sae, RouteSAE):
        return torch.bincount(sae.choice(hidden).cpu(), minlength=len(sae.layers))
    return torch.tensor([len(hidden[sae.layers[0]])])


def _verdict(sae: FrozenSAE, report: HookReport, max_fvu: float, seen: str) -> str | None:
    """What is wrong with a hook point, in one sentence; None when nothing is."""
    here, best = report.fvu[report.layer], report.fvu[report.best]
    if best < BETTER * here and here - best > MARGIN and best <= max_fvu:
        where = f"but it reconstructs {_place(sae, report.best)} better (FVU {seen})."
        if len(sae.layers) > 1:
            return f"sae.route must name the blocks the SAE was trained on; found {_place(sae, report.layer)}, {where}"
        return f"sae.layer must be the block the SAE was trained on; found {report.layer}, {where}"
    if here <= max_fvu:
        return None
    norm = (
        f" (it states {sae.normalisation}, which must be folded into its weights)"
        if sae.normalisation == "expected_average_only_in"
        else ""
    )
    name = sae.metadata.get("model_name")
    trained_on = f" (it was trained on {name})" if name else ""
    return (
        f"The SAE must leave at most {max_fvu:g} of the variance unexplained (sae.max_fvu); found FVU {seen}: "
        f"usual causes are another model{trained_on} or a missing input normalisation{norm}."
    )


def _family(name: str) -> tuple[str, bool]:
    """A model's name without owner, case and suffixes of its stage; whether it is an instruction-tuned one.

    >>> _family("google/gemma-2-2b-it"), _family("gemma-2-2b"), _family("meta-llama/Llama-3.1-8B-Instruct")
    (('gemma-2-2b', True), ('gemma-2-2b', False), ('llama-3.1-8b', True))
    """
    short = name.rstrip("/").rpartition("/")[2].lower()
    stem = re.sub(r"[-_](it|instruct|chat|pt|base|hf)$", "", short)
    return stem, bool(re.search(r"[-_](it|instruct|chat)$", short))


def _mismatch(lm: nn.Module, sae: FrozenSAE, seen: str) -> str | None:
    """One sentence where the SAE was trained on the base of an instruction-tuned model, or the other way round."""
    base: Any = base_of(lm)
    own, trained_on = str(base.config.name_or_path), str(sae.metadata.get("model_name") or "")
    (stem, tuned), (other, other_tuned) = _family(own), _family(trained_on)
    if stem != other or tuned == other_tuned:
        return None
    kinds = ("the base model", "the instruction-tuned model")
    return (
        f"The SAE was trained on {kinds[other_tuned]} {trained_on} and reads {kinds[tuned]} {own}, where its latents may mean "
        f"something else (FVU {seen}); an SAE trained on {own} is better, where there is one."
    )


def _place(sae: FrozenSAE, layer: int) -> str:
    """Name of a layer, or of the blocks that end there where the SAE reads several."""
    if len(sae.layers) > 1:
        return "blocks " + ", ".join(str(own + layer - max(sae.layers)) for own in sae.layers)
    return "the embeddings" if layer == EMBEDDINGS else f"block {layer}"


def check_hook_point(
    lm: nn.Module, sae: FrozenSAE, batches: Sequence[TokenBatch], layer: int, max_fvu: float, *, strict: bool = True
) -> HookReport:
    """Measure, and stop if the SAE does not belong at ``layer``. An SAE of the base model on an instruction-tuned one is a logged warning.

    Args:
        lm: the language model, as it was when the SAE was trained.
        sae: the SAE.
        batches: some batches of ordinary rows; a few hundred tokens are enough.
        layer: block whose output the SAE is meant to read.
        max_fvu: largest FVU that passes, in (0, 1].
        strict: whether a poor reconstruction stops the run; otherwise it is a logged warning.

    Raises:
        ModelError: as ``measure_hook_point``, strict or not; and if strict: a neighbouring layer is reconstructed clearly better, which
            the message names, or the FVU is above ``max_fvu``.
    """
    report = measure_hook_point(lm, sae, batches, layer)
    seen = ", ".join(f"{value:.3f} at {_place(sae, n)}" for n, value in report.fvu.items())
    problem = _verdict(sae, report, max_fvu, seen)
    if doubt := _mismatch(lm, sae, seen):
        _LOG.warning(doubt)
    if problem is None:
        _LOG.info("SAE at %s: FVU %s; L0 %.1f", _place(sae, layer), seen, report.l0[layer])
    elif strict:
        raise ModelError(problem)
    else:
        _LOG.warning(problem)
    return report
