"""What a step costs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from unlearn.types import TokenBatch

MIB = 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory of a stretch of code in MiB: of the accelerator where there is one, else resident memory of this process.

    Linux keeps the peak of a process and lets it be set back; where it cannot be set back (another system) the peak is that of the whole
    process so far, and ``exact`` is False.
    """

    def __init__(self, cuda: bool | None = None) -> None:
        """Choose what is looked at.

        Args:
            cuda: the current GPU (True) or this process (False), which may compute on the CPU of a machine that has one; None for the GPU
                where there is one.
        """
        self.cuda = torch.cuda.is_available() if cuda is None else cuda
        self.exact = self.cuda or self._set_back()
        self.before = 0.0

    @staticmethod
    def _set_back() -> bool:
        try:
            CLEAR.write_text("5")  # proc(5): resets the peak resident set size
        except OSError:
            return False
        return True

    @staticmethod
    def _resident(name: str) -> float:
        if not STATUS.exists():
            return 0.0
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) / 1024

    @staticmethod
    def settle() -> None:
        """Give freed memory back to the system, so that what is needed next can be seen."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc only
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def wait(self) -> None:
        """Wait until the GPU has done what it was given, so that a clock can be read."""
        if self.cuda:
            torch.cuda.synchronize()

    def start(self) -> None:
        """Begin a stretch."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / MIB
            return
        self._set_back()
        self.before = self._resident("VmRSS")

    def stop(self) -> float:
        """Peak since ``start`` in MiB."""
        if self.cuda:
            peak = torch.cuda.max_memory_allocated() / MIB
        elif STATUS.exists():
            peak = self._resident("VmHWM")
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
        return peak


class Cost(Callback):
    """Collects what the optimiser steps cost; measurements of other callbacks do not count, so it stands first in their list.

    Keys: ``cost/step_seconds`` (median wall time of a micro-batch), ``cost/step_cpu_seconds`` (median, all threads of this process),
    ``cost/train_seconds`` and ``cost/train_cpu_seconds`` (sums), ``cost/tokens_per_second``, ``cost/peak_memory_mb`` (highest memory during
    a step), ``cost/training_memory_mb`` (how far that lies above what was there before the first step: activations, gradients and the
    optimiser's state).
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.peaks: list[float] = []
        self.idle = 0.0
        self.tokens = 0
        self.memory = PeakMemory()
        self.started = self.cpu_started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What was collected so far, so that a resumed run counts every step."""
        return {"seconds": list(self.seconds), "cpu_seconds": list(self.cpu_seconds), "peaks": list(self.peaks), "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds, self.cpu_seconds = list(state_dict["seconds"]), list(state_dict["cpu_seconds"])
        self.peaks, self.tokens = list(state_dict["peaks"]), int(state_dict["tokens"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See what is in memory before the first step, of the device that computes."""
        self.memory = PeakMemory(trainer.strategy.root_device.type == "cuda")
        self.memory.settle()
        self.memory.start()
        self.idle = self.memory.before

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Mapping[str, TokenBatch], batch_idx: int) -> None:
        """Start the clocks."""
        self.memory.start()
        self.memory.wait()
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop them."""
        self.memory.wait()
        self.seconds.append(time.perf_counter() - self.started)
        self.cpu_seconds.append(time.process_time() - self.cpu_started)
        self.peaks.append(self.memory.stop())
        self.tokens += sum(int(b.attention_mask_BT.sum()) for b in batch.values())

    def results(self) -> dict[str, float]:
        """The keys above; empty when no step was taken."""
        if not self.seconds:
            return {}
        total = sum(self.seconds)
        return {
            "cost/step_seconds": statistics.median(self.seconds),
            "cost/step_cpu_seconds": statistics.median(self.cpu_seconds),
            "cost/train_seconds": total,
            "cost/train_cpu_seconds": sum(self.cpu_seconds),
            "cost/tokens_per_second": self.tokens / total,
            "cost/peak_memory_mb": max(self.peaks),
            "cost/training_memory_mb": max(0.0, max(self.peaks) - self.idle),
        }
