"""What a step costs."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from unlearn.types import TokenBatch


def peak_memory_mb() -> float:
    """Peak memory so far in MiB: of the accelerator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Cost(Callback):
    """Collects ``cost/step_seconds`` (median wall time), ``cost/tokens_per_second`` and ``cost/peak_memory_mb``.

    Stands first in the list of callbacks, so that measurements of others do not count.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens = 0
        self.started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Mapping[str, TokenBatch], batch_idx: int) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.started)
        self.tokens += sum(int(b.attention_mask_BT.sum()) for b in batch.values())

    def results(self) -> dict[str, float]:
        """The keys above; empty when no step was taken."""
        if not self.seconds:
            return {}
        total = sum(self.seconds)
        return {
            "cost/step_seconds": statistics.median(self.seconds),
            "cost/train_seconds": total,
            "cost/tokens_per_second": self.tokens / total,
            "cost/peak_memory_mb": peak_memory_mb(),
        }
