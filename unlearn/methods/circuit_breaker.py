"""Circuit breakers by representation rerouting: forget activations turn away from where they were, retain activations stay.

Paper: Zou et al., "Improving Alignment and Robustness with Circuit Breakers" (arXiv 2406.04313), section 3 and algorithm 1.

    L = c_s * mean_lt relu(cos(h_l(x_forget, t), h_l_original(x_forget, t))) + c_r * mean_lt |h_l(x_retain, t) - h_l_original(x_retain, t)|
    c_s = alpha (1 - s / 2),  c_r = alpha s / 2,  s = step / steps

h_l is the output of block l. The schedule is written here with three numbers: c_s starts at ``forget_weight`` and loses the share
``forget_decay`` by the end, c_r grows from 0 to ``retain_weight``; the defaults are the paper's alpha = 10. EleutherAI's port takes 23,
0.25 and 2, reads every block, and has a further term, here ``orthogonality``: the mean over pairs of forget rows of
relu(cos) between their token-averaged activations, whose weight grows with s too (without the port's factor of the mean number of tokens,
so multiply its 10 to 100 by that). It keeps rerouted rows from all going the same way.

Deviations. The paper trains LoRA adapters (rank 16) on the blocks up to the deepest layer read; adapters alone are the easiest to tamper
with, so whole blocks are trained unless ``model.trainable.mode`` says lora. The paper's layers 10 and 20 of 32 count
``hidden_states``, of which block l gives number l + 1; the same depths, rounded up, are the default for models of other
sizes. The authors' code holds the retain activations at every layer, this file at the layers that it reads. Tokens are the real ones
after the first. The defaults were not checked against the paper's text: take them as a reconstruction.

At the start the cosine is 1, its maximum, where the gradient is zero: nothing but rounding would choose the way out. ``nudge`` compares
with the original activation turned by a small random angle, drawn once per row, so that the start repeats and does not depend on
the machine's rounding; 0 is the formula as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig
from unlearn.functional.ranks import SharedRows, mean
from unlearn.functional.tokens import upcast
from unlearn.methods.base import Method, MethodContext
from unlearn.methods.rmu import TOKENS, block_number, token_mask
from unlearn.models.capture import capture_layers
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

DEPTHS = (10 / 32, 20 / 32)
"""The paper's layers as shares of the number of blocks."""
TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerConfig(MethodConfig):
    """Layers and schedule."""

    layers: list[int] = field(default_factory=list)
    """blocks (0-based) whose outputs are read; empty for those at 10/32 and 20/32 of the depth"""
    forget_weight: float = 10.0
    """weight of the cosine at the first step (c_s), >= 0"""
    forget_decay: float = 0.5
    """share of that weight that is gone by the end, in [0, 1]"""
    retain_weight: float = 5.0
    """weight of the retain distance at the end (c_r); it grows from 0, >= 0"""
    orthogonality: float = 0.0
    """weight at the end of the similarity between forget rows, >= 0"""
    tokens: str = "all"
    """forget tokens: all (every real token after the first), answers or predictors (tokens that predict answer tokens)"""
    nudge: float = 0.01
    """size of the random turn of the original forget activations, relative to their length, in [0, 1)"""

    def __post_init__(self) -> None:
        distinct = len(set(self.layers)) == len(self.layers)
        check(distinct and all(layer >= 0 for layer in self.layers), "method.layers", "distinct blocks, each >= 0", self.layers)
        for name in ("forget_weight", "retain_weight", "orthogonality"):
            check(getattr(self, name) >= 0, f"method.{name}", ">= 0", getattr(self, name))
        check(0 <= self.forget_decay <= 1, "method.forget_decay", "in [0, 1]", self.forget_decay)
        one_of(self.tokens, TOKENS, "method.tokens")
        check(0 <= self.nudge < 1, "method.nudge", "in [0, 1)", self.nudge)


def default_layers(n_blocks: int) -> tuple[int, ...]:
    """Blocks at the paper's depths.

    >>> default_layers(32), default_layers(26), default_layers(4), default_layers(1)
    ((9, 19), (8, 16), (1, 2), (0,))
    """
    return tuple(dict.fromkeys(math.ceil(depth * n_blocks) - 1 for depth in DEPTHS))


def rerouting_loss(hidden_ND: Tensor, original_ND: Tensor) -> Tensor:
    """``mean_n relu(cos(h, h_original))``, a scalar in [0, 1], fp32 or wider.

    >>> rerouting_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, -1.0]]))
    tensor(0.3000)
    """
    return mean(F.cosine_similarity(upcast(hidden_ND), upcast(original_ND), dim=-1).relu())


def distance_loss(hidden_ND: Tensor, original_ND: Tensor) -> Tensor:
    """``mean_n |h - h_original|`` (not squared), a scalar >= 0, fp32 or wider; no gradient where both are equal.

    >>> distance_loss(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.zeros(2, 2))
    tensor(3.)
    """
    return mean((upcast(hidden_ND) - upcast(original_ND)).norm(dim=-1))


def orthogonality_loss(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over pairs of different rows of ``relu(cos)`` of their token means, a scalar in [0, 1]; 0 for a single row.

    >>> hidden_BTD = torch.tensor([[[1.0, 0.0], [5.0, 5.0]], [[2.0, 0.0], [0.0, 2.0]]])
    >>> orthogonality_loss(hidden_BTD, torch.tensor([[True, False], [True, True]]))
    tensor(0.7071)
    """
    rows = SharedRows(torch.arange(len(hidden_BTD), device=hidden_BTD.device))
    mean_BD = (upcast(hidden_BTD) * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    unit_BD = rows.all(F.normalize(mean_BD, dim=-1, eps=TINY))
    n = len(unit_BD)
    similarity_BB = (unit_BD @ unit_BD.T).relu()
    return (similarity_BB.sum() - similarity_BB.diagonal().sum()) / max(1, n * (n - 1))


class CircuitBreaker(Method):
    """Cosine away from the original on the forget rows, distance to the original on the retain rows, traded along training."""

    name = "circuit_breaker"
    family = "representation"
    summary = "turn the target's activations away from where they were, keep the retain activations"
    paper = "https://arxiv.org/abs/2406.04313"
    streams = ("forget", "retain")
    needs = frozenset({"reference_hidden"})
    reference_streams = ("forget", "retain")
    search = {
        "method.forget_weight": {"low": 1.0, "high": 30.0, "log": True},
        "method.retain_weight": {"low": 0.3, "high": 20.0, "log": True},
        "method.tokens": {"choices": ["all", "predictors"]},
    }
    Config = CircuitBreakerConfig
    config: CircuitBreakerConfig

    def __init__(self, config: CircuitBreakerConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.layers = self.reference_layers(config, 0, context.n_blocks)
        self.progress = 0.0

    @classmethod
    def reference_layers(cls, config: MethodConfig, hook_layer: int, n_blocks: int) -> tuple[int, ...]:
        """The layers that are read; none of them is the hooked one by itself."""
        chosen = tuple(config.layers) or default_layers(n_blocks)  # type: ignore[attr-defined]
        return tuple(block_number(layer, None, n_blocks, "method.layers") for layer in chosen)

    def forget_layer(self) -> int:
        """The deepest layer that is read."""
        return max(self.layers)

    def deepest_layer(self) -> int:
        """The deepest layer that is read: no loss term needs logits."""
        return max(self.layers)

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Move along the schedule."""
        self.progress = step / steps

    def _nudged(self, original_BTD: Tensor, batch: TokenBatch) -> Tensor:
        """Original activations plus noise of ``nudge`` times their length; each row's noise is the same vector at all its tokens."""
        if not self.config.nudge:
            return original_BTD
        drawn = [torch.Generator().manual_seed((self.context.seed * 1_000_003 + row_id) % 2**63) for row_id in batch.row_id_B.tolist()]
        noise_BD = torch.stack([torch.randn(original_BTD.shape[-1], generator=generator) for generator in drawn]).to(original_BTD)
        return original_BTD + self.config.nudge * original_BTD.norm(dim=-1, keepdim=True) * F.normalize(noise_BD, dim=-1)[:, None]

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (cosine), ``retain`` (distance) and, where it has a weight, ``orthogonality``, all before weighting."""
        c, reference = self.config, self.context.reference
        if reference is None:
            raise ValueError("circuit_breaker needs a reference in its context")
        rows, kept = batch["forget"], batch["retain"]
        mask_BT, kept_BT = token_mask(rows, c.tokens), token_mask(kept, "all")
        moved, held = capture_layers(lm, rows, self.layers), capture_layers(lm, kept, self.layers)
        away = [rerouting_loss(moved[n][mask_BT], self._nudged(reference.hidden(rows, n), rows)[mask_BT]) for n in self.layers]
        near = [distance_loss(held[n][kept_BT], reference.hidden(kept, n)[kept_BT]) for n in self.layers]
        terms = {"forget": torch.stack(away).mean(), "retain": torch.stack(near).mean()}
        total = c.forget_weight * (1 - c.forget_decay * self.progress) * terms["forget"]
        total = total + c.retain_weight * self.progress * terms["retain"]
        if c.orthogonality:
            terms["orthogonality"] = torch.stack([orthogonality_loss(moved[n], mask_BT) for n in self.layers]).mean()
            total = total + c.orthogonality * self.progress * terms["orthogonality"]
        return LossTerms(total, terms)
