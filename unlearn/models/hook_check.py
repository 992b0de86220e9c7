"""Does the SAE read where it says it does? Measured before training, since a wrong hook point only shows as a bad result later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn.errors import ModelError
from unlearn.models.capture import EMBEDDINGS, capture_layers, check_layer
from unlearn.models.decoder import blocks_of, evaluating, hidden_size
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
    ``best`` the layer with the lowest FVU.
    """

    layer: int
    fvu: dict[int, float]
    l0: dict[int, float]
    best: int


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
    """FVU and L0 of the SAE at ``layer`` and the layers beside it, in one pass per batch.

    ``FVU = sum ||x - x_hat||^2 / sum ||x - mean(x)||^2`` over real tokens. The first token of each row is left out: it is BOS,
    or, where there is none, the token that takes its part as an attention sink, with a norm that would drown the others.

    Raises:
        ModelError: the SAE's width is not the model's, the layer is out of range, or there is no token to measure on.
    """
    width = hidden_size(lm)
    if sae.d_in != width:
        raise ModelError(f"The SAE must read activations of the model's width {width}; found d_in={sae.d_in}: it belongs to another model.")
    check_layer(lm, layer, "sae.layer")
    layers = [n for n in (layer - 1, layer, layer + 1) if EMBEDDINGS <= n < len(blocks_of(lm))]
    sums = {n: _Sums(torch.zeros(width, dtype=torch.float64)) for n in layers}
    with evaluating(lm):
        for batch in batches:
            real_BT = batch.attention_mask_BT.bool().clone()
            real_BT[:, 0] = False
            for n, hidden_BTD in capture_layers(lm, batch, layers).items():
                sums[n].add(sae, hidden_BTD[real_BT])
    if not sums[layer].tokens:
        raise ModelError("The hook-point check must have rows of at least two tokens; found none.")
    fvu = {n: s.fvu() for n, s in sums.items()}
    return HookReport(layer, fvu, {n: s.on / s.tokens for n, s in sums.items()}, min(fvu, key=lambda n: fvu[n]))


def _verdict(sae: FrozenSAE, report: HookReport, max_fvu: float, seen: str) -> str | None:
    """What is wrong with a hook point, in one sentence; None when nothing is."""
    here, best = report.fvu[report.layer], report.fvu[report.best]
    if best < BETTER * here and here - best > MARGIN:
        where = _name(report.best)
        return f"sae.layer must be the block the SAE was trained on; found {report.layer}, but it reconstructs {where} better (FVU {seen})."
    if here <= max_fvu:
        return None
    norm = (
        f" (it states {sae.normalisation}, which must be folded into its weights)"
        if sae.normalisation == "expected_average_only_in"
        else ""
    )
    return (
        f"The SAE must leave at most {max_fvu:g} of the variance unexplained (sae.max_fvu); found FVU {seen}: "
        f"usual causes are another model or a missing input normalisation{norm}."
    )


def _name(layer: int) -> str:
    return "the embeddings" if layer == EMBEDDINGS else f"block {layer}"


def check_hook_point(
    lm: nn.Module, sae: FrozenSAE, batches: Sequence[TokenBatch], layer: int, max_fvu: float, *, strict: bool = True
) -> HookReport:
    """Measure, and stop if the SAE does not belong at ``layer``.

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
    seen = ", ".join(f"{value:.3f} at {_name(n)}" for n, value in report.fvu.items())
    problem = _verdict(sae, report, max_fvu, seen)
    if problem is None:
        _LOG.info("SAE at block %d: FVU %s; L0 %.1f", layer, seen, report.l0[layer])
    elif strict:
        raise ModelError(problem)
    else:
        _LOG.warning(problem)
    return report
