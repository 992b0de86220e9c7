"""Quantisation: round the weights of a copy to a few bits, and ask.

Unlearning that moves the weights only a little is undone when they are rounded back to the grid on which the original stood: Zhang et al.,
"Catastrophic Failure of LLM Unlearning via Quantization" (arXiv 2410.16454). As there, weights are rounded to the nearest value, nothing is
fitted, and the question is how accuracy on the forgotten facts changes.

``int8`` and ``int4``: symmetric, one scale for each group of neighbours along the input dimension. ``nf4``: the 16 values of QLoRA
(Dettmers et al., arXiv 2305.14314), one scale for each block of 64 weights, by bitsandbytes; without that library the cell is left out.

Deviations: weights are rounded and put back in the model's own precision (activations are never rounded), scales are kept in fp32, int8 has
no outlier columns (bitsandbytes' own int8 has), and GPTQ and AWQ, which need calibration data, are not tried. Blocks of nf4 do not reach
from one output into the next where 64 does not divide the input dimension. Experts kept as one three-dimensional weight stay as they are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.attacks.asking import ask
from unlearn.attacks.base import Array, Attack, AttackConfig, AttackContext, Outcome, outcome
from unlearn.config.checks import check, one_of
from unlearn.functional.rounding import from_groups, round_groupwise
from unlearn.models.decoder import base_of, block_list_name, blocks_of, output_head
from unlearn.models.ensemble import ensemble_of

FORMATS = ("int8", "int4", "nf4")
NF4_BLOCK = 64
"""Weights that share a scale in nf4, as in QLoRA."""


@dataclass(frozen=True, kw_only=True)
class QuantiseConfig(AttackConfig):
    """Quantisation: to which formats, in what groups."""

    formats: list[str] = field(default_factory=lambda: list(FORMATS))
    """of int8, int4 and nf4 (left out without bitsandbytes), each a setting of its own"""
    group_size: int = 64
    """int8 and int4: weights that share a scale, >= 1; the input dimension where that is smaller"""
    embeddings: bool = False
    """whether token embeddings and output head are rounded too"""

    def __post_init__(self) -> None:
        rule = f"different ones of {', '.join(FORMATS)}"
        check(bool(self.formats) and len(set(self.formats)) == len(self.formats), "attack.quantise.formats", rule, self.formats)
        for name in self.formats:
            one_of(name, FORMATS, "attack.quantise.formats")
        check(self.group_size >= 1, "attack.quantise.group_size", ">= 1", self.group_size)


def has_nf4() -> bool:
    """Whether bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def round_nf4(weight_OI: Tensor) -> Tensor:
    """Weights on the grid of nf4, in their own dtype."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    groups_GS = nn.functional.pad(weight_OI.float(), (0, -weight_OI.shape[1] % NF4_BLOCK)).reshape(-1, NF4_BLOCK)
    codes, state = quantize_4bit(groups_GS.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    rounded: Tensor = dequantize_4bit(codes, state)
    return from_groups(rounded, (weight_OI.shape[0], weight_OI.shape[1])).to(weight_OI.dtype)


def _matrices(lm: Any, embeddings: bool) -> Iterator[tuple[Tensor, bool]]:
    """Weights to be rounded, each once, and whether they are stored [I, O]; those of small models beside the large one too."""
    from transformers.pytorch_utils import Conv1D

    joined = ensemble_of(lm)
    small = [] if joined is None else [joined.frozen, joined.tuned]
    parts = [blocks_of(lm), *(getattr(s.decoder, block_list_name(s.decoder)) for s in small)]
    if embeddings:
        parts += [base_of(lm).get_input_embeddings(), output_head(lm), *(s.head for s in small)]  # type: ignore[operator]
        parts += [module for s in small for module in s.decoder.children() if isinstance(module, nn.Embedding)]
    seen = set()
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield module.weight.data, isinstance(module, Conv1D)


class Quantise(Attack):
    """Rounds the weights of a copy and asks."""

    name = "quantise"
    summary = "rounds the weights of a copy to 8 and 4 bits and asks"
    paper = "https://arxiv.org/abs/2410.16454"
    quick = {}
    Config = QuantiseConfig

    def rounded(self, context: AttackContext, name: str) -> Any:
        """A copy with its weights rounded to a format."""
        lm: Any = context.copy()
        with torch.no_grad():
            for weight, transposed in _matrices(lm, self.config.embeddings):
                weight_OI = weight.T if transposed else weight
                new_OI = round_nf4(weight_OI) if name == "nf4" else round_groupwise(weight_OI, int(name[3:]), self.config.group_size)
                weight_OI.copy_(new_OI)
        return lm

    def missing(self, context: AttackContext) -> str | None:
        """A format that can be computed here."""
        return None if self.formats() else "bitsandbytes, for nf4 (pip install bitsandbytes)"

    def formats(self) -> list[str]:
        """Formats that can be computed here."""
        return [name for name in self.config.formats if name != "nf4" or has_nf4()]

    def run(self, context: AttackContext) -> Outcome:
        """Ask both sides at every format, and the target before rounding."""
        formats = self.formats()
        before = float(ask(context.lm, context.target.test, context.reader).mean())
        hits: dict[str, tuple[Array, Array]] = {}
        for done, name in enumerate(formats):
            context.tick(done / len(formats))
            lm = self.rounded(context, name)
            hits[name] = (ask(lm, context.target.test, context.reader), ask(lm, context.control.test, context.reader))
        extra = {f"attack/quantise_{name}_accuracy": float(target.mean()) for name, (target, _) in hits.items()}
        extra |= {f"attack/quantise_{name}_change": extra[f"attack/quantise_{name}_accuracy"] - before for name in formats}
        return outcome(context, formats, [target for target, _ in hits.values()], [control for _, control in hits.values()], **extra)
