"""Memory of a run by part, on each device and on the host, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from unlearn.data.reader import Reader
from unlearn.data.tokenize import TokenRow, collate
from unlearn.estimate.rehearsal import KINDS, Rehearsal, blank_lm, rehearse
from unlearn.estimate.stand_in import Size, batches_of, data_of, reader_of
from unlearn.types import EntityData, TokenBatch

if TYPE_CHECKING:
    from unlearn.config.schema import RunConfig
    from unlearn.models.sae import FrozenSAE

GIB = 2**30
CUDA_CONTEXT = int(0.6 * GIB)
"""What a process holds on a GPU before its first tensor: CUDA's context and the workspace of its matrix library. Not measured here."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes.

    ``device`` by part: ``KINDS``, ``shared`` (gathered weights and gradients, or DDP's buckets) and ``framework``; ``peak`` is its sum.
    ``measuring`` is the peak of an evaluation batch on the device, ``host`` that of one process in main memory while it loads the model.
    ``rows`` are those of one micro-batch on one device, by stream.
    """

    device: Mapping[str, int]
    measuring: int
    host: int
    world: int
    rows: Mapping[str, int]
    rehearsal: Rehearsal

    @property
    def peak(self) -> int:
        """The largest of training and measuring, with what the framework takes."""
        return max(sum(self.device.values()), self.measuring)


def rows_per_device(config: RunConfig, world: int) -> dict[str, int]:
    """Rows of each stream in one micro-batch of one device, at least 1."""
    shares = world * config.trainer.accumulate
    return {s: max(1, -(-getattr(config.data.batch, s) // shares)) for s in ("forget", "retain", "known", "unknown")}


def longest(rows: list[TokenRow], count: int, pad_id: int) -> TokenBatch:
    """The batch of ``count`` rows that takes the most memory: the longest ones; rows come again where there are fewer."""
    order = sorted(rows, key=lambda row: -len(row.ids))
    return collate([order[i % len(order)] for i in range(count)], pad_id)


def estimate(
    config: RunConfig,
    lm_config: Any,
    *,
    sae: FrozenSAE | None = None,
    world: int = 1,
    on_gpu: bool = False,
    size: Size | None = None,
    data: EntityData | None = None,
    reader: Reader | None = None,
) -> Estimate:
    """What a run takes on each device and on the host.

    The method's own training step is run on the architecture with shapes in the place of numbers (``unlearn.estimate.rehearsal``), so that
    early exit, frozen blocks, adapters, checkpointing and what the method keeps are counted as they are.

    Args:
        config: the run.
        lm_config: Hugging Face configuration of the language model; no weights are needed.
        sae: the SAE, on the meta device; None where there is none.
        world: devices over all nodes.
        on_gpu: whether the devices are GPUs.
        size: tokens of a row where there are no data; ``rows`` is not used.
        data: the source's rows; None takes made-up ones of ``size``.
        reader: makes batches of ``data``.
    """
    rows = rows_per_device(config, world)
    if data is None or reader is None:
        size = size or Size(rows=1)
        data = data_of({s: Size(rows=n, tokens=size.tokens, answer=size.answer) for s, n in rows.items()})
        reader = reader_of(config.data.max_length + size.tokens, config.evaluation.batch_size)
        batches = batches_of(data, reader)
    else:
        batches = {s: longest(reader.tokens(data.streams[s]), n, reader.pad_id) for s, n in rows.items()}
    lm = blank_lm(lm_config, config.model.dtype, config.model.attention)
    found = rehearse(config, lm, batches, sae=sae, data=data, reader=reader, on_gpu=on_gpu)
    parts = {kind: found.parts[kind] for kind in KINDS}
    if world > 1:
        parts = _sharded(parts, found, config, world) if config.trainer.strategy == "fsdp2" else _replicated(parts, found)
    overhead = CUDA_CONTEXT if on_gpu else 0
    device = {**parts, "framework": overhead}
    weights = sum(p.numel() * p.element_size() for p in lm.parameters())
    return Estimate(
        device=device,
        measuring=found.measuring + overhead,
        host=weights + found.parts["sae"] + resident(),
        world=world,
        rows=rows,
        rehearsal=found,
    )


def _replicated(parts: dict[str, int], found: Rehearsal) -> dict[str, int]:
    """DDP keeps the gradients a second time, in the buckets that it sends."""
    return {**parts, "shared": found.trained_bytes}


def _sharded(parts: dict[str, int], found: Rehearsal, config: RunConfig, world: int) -> dict[str, int]:
    """FSDP2: a share of weights, gradients and optimiser state, and beside it whole weights and gradients for as long as they are at work.

    Whole are the weights of the largest block and of the largest module outside, each twice (the buffer they are gathered in, and the
    weights copied out of it), and the gradients of a block three times (computed, in the buffer that is sent, and received).
    """
    split = {kind: -(-parts[kind] // world) for kind in ("weights", "gradients", "optimiser")}
    half = 0.5 if config.trainer.precision == "bf16-mixed" and config.model.dtype == "float32" else 1.0
    gathered = int(half * 2 * (found.block + found.outside))
    returned = 3 * min(found.block, found.trained_bytes)
    return {**parts, **split, "shared": gathered + returned}


def resident() -> int:
    """Bytes that this process holds in main memory now: Python and its libraries."""
    import os
    from pathlib import Path

    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else GIB


def gib(count: float) -> str:
    """``count`` bytes in words.

    >>> gib(3 * 2**30), gib(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{count / GIB:.1f} GiB" if count >= 0.1 * GIB else f"{count / 2**20:.0f} MiB"


def device_total(index: int = 0) -> int | None:
    """Memory of a GPU in bytes; None without one."""
    return int(torch.cuda.get_device_properties(index).total_memory) if torch.cuda.is_available() else None
