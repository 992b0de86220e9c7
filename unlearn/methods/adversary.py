"""An adversary with weights of its own: somebody who has the model, trains a copy of it, and is met while the model is still in training.

Its parameters are a change of the trained weights, ``delta``: of all of them (``full``), of those of some blocks (``blocks``), or of low
rank in every matrix (``lora``, arXiv 2106.09685). The model itself is never touched: inside ``shifted`` it computes with
``weights + delta``, so the adversary keeps what it has learnt while the weights move under it.

Cost: memory for ``delta``, AdamW's two moments and one gradient, each of the size of what the adversary changes (fp32); an attack step is
a forward and a backward pass of its batch. Every process runs the whole attack, so that all have the same adversary without exchanging
anything; more devices do not make it faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn.errors import ConfigError
from unlearn.functional.tokens import token_mean, token_nll
from unlearn.methods.undo import swapped, trained_weights
from unlearn.models.decoder import block_prefix, blocks_of
from unlearn.models.forward import forward, up_to_answers
from unlearn.models.trainable import block_of, parse_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.types import TokenBatch

ADVERSARIES = ("full", "blocks", "lora")
CLIP = 1.0
"""Largest norm of a gradient of the adversary, as in the attacks that a model is measured with."""


class Adversary:
    """A change of the trained weights, and the AdamW that makes it.

    Attributes:
        names: trained weights that it may change.
        parts: its parameters by weight, fp32: ``(delta,)``, or ``(down [r, in], up [out, r])`` with ``delta = up @ down``.
    """

    def __init__(self, lm: PreTrainedModel, kind: str, blocks: str = "all", rank: int = 8) -> None:
        """Choose the weights; ``begin`` must come before the first step.

        Args:
            lm: the model, its trained weights selected.
            kind: one of ``ADVERSARIES``.
            blocks: which blocks for ``blocks``, as in ``model.trainable.blocks``.
            rank: of the change of each matrix for ``lora``, >= 1.

        Raises:
            ConfigError: it would have nothing to change.
        """
        weights, prefix = trained_weights(lm), block_prefix(lm)
        chosen = set(parse_blocks(blocks, len(blocks_of(lm)))) if kind == "blocks" else None
        self.kind, self.rank = kind, rank
        self.names = tuple(
            name
            for name, weight in weights.items()
            if (chosen is None or block_of(name, prefix) in chosen) and (kind != "lora" or weight.ndim == 2)
        )
        if not self.names:
            raise ConfigError(f"method.adversary '{kind}' must have trained weights to change; found none.")
        self.parts: dict[str, tuple[Tensor, ...]] = {}
        self.optimizer: torch.optim.AdamW | None = None

    def begin(self, lm: PreTrainedModel, lr: float, seed: int) -> None:
        """Forget everything: no change of the weights, a new optimiser.

        Args:
            lm: the model.
            lr: learning rate, > 0.
            seed: of the first ``down`` matrices of ``lora``.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = trained_weights(lm)
        self.parts = {name: self._fresh(weights[name], generator) for name in self.names}
        self._optimise(lr)

    def _fresh(self, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        if self.kind != "lora":
            return (torch.zeros_like(weight, dtype=torch.float32),)
        out, width = weight.shape
        down = torch.randn(self.rank, width, generator=generator) / width**0.5
        return down.to(weight.device), torch.zeros(out, self.rank, device=weight.device)

    def _optimise(self, lr: float) -> torch.optim.AdamW:
        """A new optimiser of the parts."""
        every = [part for parts in self.parts.values() for part in parts]
        fused = all(part.device.type in ("cpu", "cuda") for part in every)  # the same arithmetic in one pass over the memory
        self.optimizer = torch.optim.AdamW(every, lr=lr, weight_decay=0.0, fused=fused)
        return self.optimizer

    def _delta(self, name: str) -> Tensor:
        parts = self.parts[name]
        return parts[0] if len(parts) == 1 else parts[1] @ parts[0]

    @contextmanager
    def shifted(self, lm: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
        """Inside, the model computes with its weights plus ``delta``; yields the trained weights. No graph must be kept across it."""
        weights = trained_weights(lm)
        moved = {name: (weights[name].detach().float() + self._delta(name)).to(weights[name].dtype) for name in self.names}
        with swapped(lm, moved):
            yield weights

    def gradients(self, lm: PreTrainedModel, loss: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``loss()`` at the adversary's weights, detached, and its gradient there in every trained weight that it reaches, fp32."""
        with self.shifted(lm) as weights, torch.enable_grad():
            value = loss()
            found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        named = zip(weights, found, strict=True)
        return value.detach(), {name: gradient.float() for name, gradient in named if gradient is not None}

    def step(self, lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
        """One step of fine-tuning on the answers of a batch; gives the negative log-likelihood before it, in nats.

        Raises:
            RuntimeError: ``begin`` was never called.
        """
        if self.optimizer is None:
            raise RuntimeError("an adversary must begin before it steps")

        def loss() -> Tensor:
            out = forward(lm, up_to_answers(batch))
            return token_mean(token_nll(out.logits_AV, out.targets_A))

        value, gradients = self.gradients(lm, loss)
        for name in self.names:
            self._give(name, gradients.get(name))
        torch.nn.utils.clip_grad_norm_([part for parts in self.parts.values() for part in parts], CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def _give(self, name: str, gradient: Tensor | None) -> None:
        """Gradient of the parts, from that of the weight."""
        parts = self.parts[name]
        if gradient is None:
            return
        if len(parts) == 1:
            parts[0].grad = gradient
        else:
            parts[0].grad, parts[1].grad = parts[1].T @ gradient, gradient @ parts[0].T

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, for checkpoints; empty before ``begin``."""
        if self.optimizer is None:
            return {}
        parts = {name: [part.clone() for part in parts] for name, parts in self.parts.items()}
        return {"parts": parts, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where ``state`` was taken."""
        if not state:
            return
        self.parts = {name: tuple(part.to(device).clone() for part in parts) for name, parts in state["parts"].items()}
        self._optimise(1.0).load_state_dict(copy.deepcopy(state["optimizer"]))
