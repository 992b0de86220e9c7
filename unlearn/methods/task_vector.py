"""Task-vector negation: learn the forget rows better, then step the other way in weight space.

Paper: Ilharco et al., "Editing Models with Task Arithmetic" (arXiv 2212.04089), section 3 (forgetting by negation); as a baseline of MUSE
(Shi et al., arXiv 2407.06460), section 4.1, whose settings are the defaults here: the model is trained on the forget rows with the
ordinary cross-entropy (10 epochs, learning rate 1e-5), and alpha is 5.

With the original weights theta_0 and those after training theta_r, ``finish`` sets, on the trained weights only::

    theta = theta_0 - alpha * (theta_r - theta_0)

Two things follow that are unlike the other methods. The steps *reinforce*: the term called ``forget`` is the cross-entropy of the forget
answers, it falls as the model knows them better, and whatever is measured while training goes on shows a model that remembers more. And
how far the result lies from the original depends on how far training went: alpha times the distance, so learning rate, steps and alpha
act together; there is no retain term.

Deviation: for adapters (LoRA) the weight difference is the product B A with B = 0 at the start, so B alone is negated and scaled and A is
kept as trained; negating both would give alpha squared times the difference with its sign unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll, upcast
from unlearn.methods.base import Method, MethodContext
from unlearn.models.forward import forward
from unlearn.models.trainable import trainable_state
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FIRST_FACTORS = (".lora_A.", ".lora_embedding_A.")
"""Parts of the names of those adapter weights that are random at the start, where the other factor is zero."""


@dataclass(frozen=True, kw_only=True)
class TaskVectorConfig(MethodConfig):
    """How far to step the other way."""

    alpha: float = 5.0
    """the task vector is subtracted this many times, >= 0; 0 gives the original model back"""

    def __post_init__(self) -> None:
        check(0 <= self.alpha < math.inf, "method.alpha", "a number >= 0", self.alpha)


def negated(original: Tensor, reinforced: Tensor, alpha: float) -> Tensor:
    """``original - alpha * (reinforced - original)``, computed in fp32 or wider; any shape.

    >>> negated(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]), alpha=2.0)
    tensor([0., 2.])
    """
    start = upcast(original)
    return start - alpha * (upcast(reinforced) - start)


class TaskVector(Method):
    """Trains on the forget rows as fine-tuning would, and ends on the far side of the original weights."""

    name = "task_vector"
    family = "likelihood"
    summary = "fine-tune on the forget rows, then subtract that change of the weights several times over"
    paper = "https://arxiv.org/abs/2212.04089"
    streams = ("forget",)
    search = {
        "optim.lr": {"low": 0.02, "high": 2.0, "log": True},
        "method.alpha": {"low": 0.25, "high": 8.0, "log": True},
    }
    Config = TaskVectorConfig
    config: TaskVectorConfig

    def __init__(self, config: TaskVectorConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.original: dict[str, Tensor] = {}

    def setup(self, lm: PreTrainedModel) -> None:
        """Keep the weights that will be trained as they are, on the CPU."""
        self.original = trainable_state(lm)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, the cross-entropy of the forget answers, which the steps bring *down* (see above)."""
        out = forward(lm, batch["forget"])
        total = mean(token_nll(out.logits_AV, out.targets_A))
        return LossTerms(total, {"forget": total})

    @torch.no_grad()
    def finish(self, lm: PreTrainedModel) -> None:
        """Replace what was trained by its negation."""
        weights = dict(lm.named_parameters())
        for name, original in self.original.items():
            if not any(part in name for part in FIRST_FACTORS):
                weights[name].copy_(negated(original.to(weights[name].device), weights[name], self.config.alpha))
