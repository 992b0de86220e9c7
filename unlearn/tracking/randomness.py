"""The random state of a process, as a checkpoint holds it: tensors and plain values."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

Result = TypeVar("Result")


def random_state() -> dict[str, Any]:
    """State of the generators of torch (and its current GPU), Python and numpy in this process."""
    bits = np.random.get_state(legacy=False)
    kept: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(bits["state"]["key"].astype(np.int64)),
            "pos": int(bits["state"]["pos"]),
            "has_gauss": int(bits["has_gauss"]),
            "gauss": float(bits["gauss"]),
        },
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        kept["cuda"] = torch.cuda.get_rng_state()
    return kept


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from what ``random_state`` gave."""
    torch.set_rng_state(state["torch"].cpu())
    random.setstate(state["python"])
    bits = state["numpy"]
    key = bits["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, bits["pos"], bits["has_gauss"], bits["gauss"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def everyone(mine: Any) -> list[Any]:
    """``mine`` of every process, by rank; every process must call it."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [mine]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts


class Replay:
    """The micro-batches of one step draw the same random numbers however often each is computed.

    From the generators that ``owner`` and its submodules hold as attributes all micro-batches draw alike, as processes do: what they draw
    belongs to the step, which moves them on once. From the generators of the process each draws its own.
    """

    def __init__(self, owner: nn.Module, n: int) -> None:
        """At the beginning of a step of ``n`` micro-batches."""
        found = {id(value): value for part in owner.modules() for value in vars(part).values() if isinstance(value, torch.Generator)}
        self._own = [(generator, generator.get_state()) for generator in found.values()]
        self._process: list[dict[str, Any] | None] = [None] * n

    def of(self, compute: Callable[[int], Result]) -> Callable[[int], Result]:
        """``compute(index)``, from where the generators were when ``index`` was computed first."""

        def again(index: int) -> Result:
            for generator, state in self._own:
                generator.set_state(state)
            kept = self._process[index]
            if kept is None:
                self._process[index] = random_state()
            else:
                set_random_state(kept)
            return compute(index)

        return again
