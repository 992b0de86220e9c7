"""Representation misdirection: forget activations go to a random vector of fixed length, retain activations stay.

Paper: Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning" (arXiv 2403.03218), section 4.

    L = mean_t |h(x_forget, t) - c u|^2 / D + alpha * mean_t |h(x_retain, t) - h_original(x_retain, t)|^2 / D

h is the output of one block, u is drawn from the uniform distribution on [0, 1)^D (not a Gaussian: every entry is positive) and normalised,
once, from the run's seed. As in the authors' code both halves are mean squared errors, so D, which the paper's norms do not have, divides
both and leaves alpha as it is. Trained are, as in the authors' recipe, the down-projections of the MLPs of the three blocks that end at
``layer``.

c and alpha have two published recipes. The authors take 6.5 and 1200 for Zephyr-7B, layer 7 of 32, learning rate 5e-5, whole corpora;
open-unlearning takes 2 and 1 for questions and answers about invented authors. The defaults are the latter: with short rows that share
templates and a small model, an alpha of 1200 let hardly anything move at learning rates of 5e-4 and 5e-3. A c far below the
norm of the hidden states shrinks them; ``adaptive_rmu`` measures that norm.

Deviations. Averages run over real tokens after the first: the authors' code averages over padding too, which lets the weight of a row
depend on its neighbours, and the first token has a norm of its own that no text depends on. open-unlearning counts answer tokens only
(``tokens: answers``), and divides the mean sum of a row by the lengths of all rows of the batch (``average: compat``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.functional.ranks import mean, ratio
from unlearn.functional.tokens import upcast
from unlearn.methods.base import Method, MethodContext
from unlearn.models.capture import capture
from unlearn.models.decoder import device_of, hidden_size
from unlearn.types import IGNORE_INDEX, LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TOKENS = ("all", "answers", "predictors")
AVERAGES = ("tokens", "compat")
DOWN_PROJECTION = r"\b(down_proj|mlp\.c_proj|dense_4h_to_h|fc2)(\.weight)?$"
"""Weight of the last matrix of an MLP, in the families' names."""


def block_number(layer: int | None, hook_layer: int | None, n_blocks: int, key: str = "method.layer") -> int:
    """``layer``, or the hooked block where it is None.

    Raises:
        ConfigError: there is neither, or the model has no such block; the message starts with ``key``.

    >>> block_number(None, 5, 12), block_number(7, 5, 12)
    (5, 7)
    """
    chosen = hook_layer if layer is None else layer
    if chosen is None or not 0 <= chosen < n_blocks:
        raise ConfigError(f"{key} must be a block of the model, 0 to {n_blocks - 1}; found {chosen}.")
    return chosen


def token_mask(batch: TokenBatch, tokens: str) -> Tensor:
    """Which tokens count, bool [B, T].

    Args:
        batch: padded on the right.
        tokens: ``all`` (every real token after the first), ``answers`` (the labelled ones), ``predictors`` (those that predict them).
    """
    if tokens == "all":
        mask_BT = batch.attention_mask_BT.bool().clone()
        mask_BT[:, 0] = False
        return mask_BT
    labelled_BT = batch.labels_BT[:, 1:] != IGNORE_INDEX
    return F.pad(labelled_BT, (1, 0) if tokens == "answers" else (0, 1))


def control_vector(width: int, seed: int) -> Tensor:
    """A unit vector [D], fp32, drawn from the uniform distribution on [0, 1)^D.

    >>> u_D = control_vector(16, seed=0)
    >>> bool((u_D >= 0).all()), round(u_D.norm().item(), 5)
    (True, 1.0)
    """
    drawn_D = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return drawn_D / drawn_D.norm()


def masked_mse(a_BTD: Tensor, b_BTD: Tensor, mask_BT: Tensor, average: str = "tokens") -> Tensor:
    """Mean over tokens of ``|a - b|^2 / D``, a scalar >= 0, fp32 or wider; 0 where no token counts.

    Args:
        a_BTD: activations.
        b_BTD: what they are compared with; any shape that broadcasts, such as [D].
        mask_BT: tokens that count.
        average: ``tokens`` (over all that count), or ``compat``: the mean over rows of a row's sum, times the mean over rows of one
            over a row's number of tokens, as open-unlearning computes it.

    >>> a_BTD = torch.tensor([[[1.0, 1.0], [3.0, 3.0]], [[2.0, 2.0], [9.0, 9.0]]])
    >>> mask_BT = torch.tensor([[True, True], [True, False]])
    >>> masked_mse(a_BTD, torch.zeros(2), mask_BT), masked_mse(a_BTD, torch.zeros(2), mask_BT, "compat")
    (tensor(4.6667), tensor(5.2500))
    """
    square_BT = (upcast(a_BTD) - upcast(b_BTD)).square().mean(-1) * mask_BT
    if average == "compat":
        return mean(square_BT.sum(1)) * mean(mask_BT.sum(1).clamp(min=1).to(square_BT).reciprocal())
    return ratio(square_BT.sum(), mask_BT.sum())


@dataclass(frozen=True, kw_only=True)
class SteeringConfig(MethodConfig):
    """What methods share that send forget activations to a target."""

    layer: int | None = None
    """block (0-based) whose output is steered; null for the block that the SAE reads (the paper: 7 of 32)"""
    retain_weight: float = 1.0
    """weight of the mean squared change of the retain activations (alpha), >= 0"""
    tokens: str = "all"
    """all (every real token after the first), answers (answer tokens) or predictors (tokens that predict answer tokens), in both streams"""
    average: str = "tokens"
    """tokens (mean over the tokens of the batch) or compat (as open-unlearning divides)"""

    def __post_init__(self) -> None:
        check(self.layer is None or self.layer >= 0, "method.layer", ">= 0, or null", self.layer)
        check(self.retain_weight >= 0, "method.retain_weight", ">= 0", self.retain_weight)
        one_of(self.tokens, TOKENS, "method.tokens")
        one_of(self.average, AVERAGES, "method.average")


@dataclass(frozen=True, kw_only=True)
class RMUConfig(SteeringConfig):
    """Where to, and how far."""

    steering_coefficient: float = 2.0
    """length of the target vector (c), > 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steering_coefficient > 0, "method.steering_coefficient", "> 0", self.steering_coefficient)


class Steering(Method, ABC):
    """Forget activations go to ``target``, retain activations stay; a subclass says where."""

    needs = frozenset({"reference_hidden"})
    config: SteeringConfig
    control_D: Tensor

    def __init__(self, config: SteeringConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.layer = block_number(config.layer, context.hook_layer, context.n_blocks)

    @classmethod
    def reference_layers(cls, config: MethodConfig, hook_layer: int, n_blocks: int) -> tuple[int, ...]:
        """The steered block."""
        return (block_number(config.layer, hook_layer, n_blocks),)  # type: ignore[attr-defined]

    def trainable(self, n_blocks: int) -> TrainableConfig:
        """Down-projections of the three blocks that end at the steered one."""
        return TrainableConfig(mode="modules", blocks=f"{max(0, self.layer - 2)}-{self.layer}", modules=[DOWN_PROJECTION])

    def forget_layer(self) -> int:
        """The steered block."""
        return self.layer

    def deepest_layer(self) -> int:
        """The steered block: no loss term needs logits."""
        return self.layer

    def setup(self, lm: PreTrainedModel) -> None:
        """Draw the control vector."""
        self.register_buffer("control_D", control_vector(hidden_size(lm), self.context.seed).to(device_of(lm)), persistent=False)

    @abstractmethod
    def target(self, batch: TokenBatch) -> Tensor:
        """Where the activations of a forget batch go, [D] or [B, T, D]."""

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, ``retain``, both mean squared errors before weighting."""
        c, reference = self.config, self.context.reference
        if reference is None:
            raise ValueError(f"{self.name} needs a reference in its context")
        rows, kept = batch["forget"], batch["retain"]
        forget = masked_mse(capture(lm, rows, self.layer), self.target(rows), token_mask(rows, c.tokens), c.average)
        retain = masked_mse(capture(lm, kept, self.layer), reference.hidden(kept, self.layer), token_mask(kept, c.tokens), c.average)
        return LossTerms(forget + c.retain_weight * retain, {"forget": forget, "retain": retain})


class RMU(Steering):
    """The target is one random vector of fixed length."""

    name = "rmu"
    family = "representation"
    summary = "send the target's activations to a random vector, keep the retain activations"
    paper = "https://arxiv.org/abs/2403.03218"
    streams = ("forget", "retain")
    needs = frozenset({"reference_hidden"})
    reference_streams = ("retain",)
    search = {
        "method.steering_coefficient": {"low": 0.5, "high": 20.0, "log": True},
        "method.retain_weight": {"low": 0.1, "high": 100.0, "log": True},
        "method.tokens": {"choices": ["all", "predictors"]},
    }
    Config = RMUConfig
    config: RMUConfig

    def target(self, batch: TokenBatch) -> Tensor:
        """``c * u``, [D]."""
        return self.config.steering_coefficient * self.control_D
