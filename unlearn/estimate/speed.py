"""Time of a step: the work that a rehearsal counts, at the rates that this device shows in a short probe.

A step is taken as its operations one after the other, each as slow as the slowest of three: arithmetic (FLOPs over the rate of a matrix
product), memory (bytes over the rate of adding two large tensors) and the time that any operation takes (Williams et al., "Roofline",
CACM 2009). Left out: what overlaps, what a compiler fuses, loading of rows, communication.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from unlearn.estimate.rehearsal import Rehearsal

SIDE, LENGTH, SMALL = {"cpu": 512, "cuda": 4096}, {"cpu": 2**22, "cuda": 2**27}, 64
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Rates:
    """FLOPs per second of a matrix product, bytes per second of an addition, seconds of the smallest operation."""

    flops: float
    bytes: float
    call: float

    @classmethod
    def measure(cls, device: str, dtype: str, clock: Callable[[], float] = time.perf_counter) -> Rates:
        """Probe ``device`` (cpu or cuda) for less than a second; the best of a few repeats, which other programs disturb least.

        ``clock`` is wall time; where other programs share the cores, ``time.process_time`` leaves them out.
        """
        kind = getattr(torch, dtype)
        side, length = SIDE[device], LENGTH[device]
        a, b = torch.randn(side, side, device=device, dtype=kind), torch.randn(side, side, device=device, dtype=kind)
        x, y = torch.randn(length, device=device, dtype=kind), torch.randn(length, device=device, dtype=kind)
        small = torch.randn(SMALL, device=device, dtype=kind, requires_grad=True)
        product = _timed(lambda: a @ b, device, clock)
        addition = _timed(lambda: torch.add(x, y), device, clock)
        calls = _timed(lambda: [small * 2.0 for _ in range(100)], device, clock) / 100
        return cls(flops=2 * side**3 / product, bytes=3 * length * x.element_size() / addition, call=calls)


def _timed(work: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    """Least seconds of ``work``."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return min(seconds)


def step_seconds(rehearsal: Rehearsal, rates: Rates) -> float:
    """Seconds of one optimiser step on one device."""
    return sum(n * max(flops / rates.flops, size / rates.bytes, rates.call) for (flops, size), n in rehearsal.work.items())
