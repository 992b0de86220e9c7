"""Optimisers as far as their memory goes, and weights in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from unlearn.config.schema import ModelConfig, OptimConfig

BLOCK, SMALLEST = 256, 4096
"""Entries that share one scale in an 8-bit state; weights with fewer entries than the second keep fp32 states (bitsandbytes)."""
BYTES_PER_WEIGHT = {"8bit": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Of a quantised weight: int8; NormalFloat-4 with an 8-bit scale for every 64 entries and an fp32 one for every 256 scales."""


class EightBit(torch.optim.Optimizer):
    """Holds what AdamW with 8-bit states holds; changes nothing."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the states."""
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state or p.grad is None:
                    continue
                few = p.numel() < SMALLEST
                kind = torch.float32 if few else torch.float8_e4m3fn  # one byte, and a shape only like all floats
                self.state[p] = {name: torch.empty(p.shape, dtype=kind, device=p.device) for name in ("m", "v")}
                self.state[p] |= {f"scale_{n}": torch.empty(0 if few else -(-p.numel() // BLOCK), device=p.device) for n in ("m", "v")}


class Paged(torch.optim.Optimizer):
    """AdamW whose states lie in main memory when the device is short of it: none are counted."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing stays on the device."""


def optimiser(config: OptimConfig, parameters: list[nn.Parameter], on_gpu: bool) -> torch.optim.Optimizer:
    """What stands for the run's optimiser: AdamW itself, all weights at once on a GPU, or a holder of 8-bit or paged states."""
    if config.name.startswith("paged"):
        return Paged(parameters)
    if config.name == "adamw_8bit":
        return EightBit(parameters)
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay, foreach=on_gpu)


def saved_by_bits(lm: nn.Module, blocks: nn.ModuleList, config: ModelConfig) -> tuple[int, int]:
    """(bytes that quantised weights take less, bytes of the largest of them when it is unpacked to be multiplied).

    Quantised are the linear layers of the blocks, without adapters.
    """
    if config.quantise is None:
        return 0, 0
    own = {id(p) for p in lm.parameters()}
    sizes = [
        (m.weight.numel(), m.weight.element_size())
        for block in blocks
        for name, m in block.named_modules()
        if isinstance(m, nn.Linear) and "lora" not in name and id(m.weight) in own
    ]
    per = BYTES_PER_WEIGHT[config.quantise]
    saved = int(sum(count * (size - per) for count, size in sizes))
    return saved, max((count * size for count, size in sizes), default=0)
