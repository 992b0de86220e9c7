"""TAR: tamper-resistance, a loss at the weights of somebody who fine-tunes the model back.

Paper: Tamirisa, Bharathi, Phan, Zhou, Gatti, Suresh, Lin, Wang, Wang, Arel, Zou, Song, Li, Hendrycks, Mazeika, "Tamper-Resistant
Safeguards for Open-Weight LLMs" (arXiv 2408.00761), section 4. In each step an adversary fine-tunes a copy of the model for K steps; at
points of its way the tamper-resistance loss is taken, here the negative entropy of the answers (the paper's choice for knowledge), and
its gradients there, averaged, are added to that of the retain term (first-order meta-learning):

    g = lambda_TR mean_i grad L_TR(attack_i(theta)) + lambda_retain grad (NLL(retain) + hidden_weight mean_l |h_l - h_l,original|^2 / var)

Deviations: the paper starts from a safeguard of its own (random mapping); here the model as it stands counts as the 0-th point of every
way, so that unlearning and resistance are learnt together. The paper's adversaries fine-tune for 64 steps and are drawn from several
kinds; here they are as short as ``adversary_steps`` says, and are taught some facts of the targets while the entropy is that of the
others. The paper keeps hidden states by their L2 distance; here it is relative to their variance, so that the weight needs no tuning by
model.

Cost per step beside the streams' rows: ``adversary_steps`` passes of ``adversary_rows`` rows forward and backward, and ``points + 1``
more for the loss. Memory: the adversary (see ``unlearn.methods.adversary``), and one gradient of the trained weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from unlearn.config.checks import check
from unlearn.functional.erasure import negative_entropy, relative_change
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.base import Method, MethodContext
from unlearn.methods.relearning import AdversaryConfig, Relearner, add_gradients, made
from unlearn.models.decoder import device_of
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.config.schema import MethodConfig
    from unlearn.data.reader import Reader
    from unlearn.types import EntityData


@dataclass(frozen=True, kw_only=True)
class TARConfig(AdversaryConfig):
    """Weights of the two losses, and the adversary."""

    resistance_weight: float = 4.0
    """weight of the tamper-resistance loss (lambda_TR), finite and >= 0"""
    retain_weight: float = 1.0
    """weight of the retain term (lambda_retain), finite and >= 0"""
    hidden_weight: float = 1.0
    """weight, within the retain term, of the relative squared change of every block's output on retain rows, finite and >= 0"""
    adversary_steps: int = 8
    """steps of every adversary (K), >= 1"""
    points: int = 4
    """how many of them, evenly spread and the last among them, are followed by the loss, >= 1; at most adversary_steps count"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("resistance_weight", "retain_weight", "hidden_weight"):
            check(0 <= getattr(self, name) < float("inf"), f"method.{name}", "finite and >= 0", getattr(self, name))
        check(self.points >= 1, "method.points", ">= 1", self.points)


def measured_after(steps: int, points: int) -> frozenset[int]:
    """Steps of an adversary, from 1, after which the loss is taken.

    >>> sorted(measured_after(8, 4)), sorted(measured_after(2, 5))
    ([2, 4, 6, 8], [1, 2])
    """
    points = min(points, steps)
    return frozenset(steps * (n + 1) // points for n in range(points))


class TAR(Method):
    """High entropy on the target's facts, here and wherever an adversary gets to; a retain term."""

    name = "tar"
    family = "representation"
    summary = "maximise the entropy of the target's answers at the weights of an adversary that fine-tunes them back"
    paper = "https://arxiv.org/abs/2408.00761"
    streams = ("forget", "retain")
    needs = frozenset({"rows", "reference_hidden"})
    reference_streams = ("retain",)
    sharded = False
    search = {
        "method.resistance_weight": {"low": 0.5, "high": 20.0, "log": True},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
        "method.adversary_steps": {"choices": [4, 8, 16]},
    }
    Config = TARConfig
    config: TARConfig

    def __init__(self, config: TARConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.data is None or context.reader is None:
            raise ValueError("tar needs rows in its context")
        self.data: EntityData = context.data
        self.reader: Reader = context.reader
        self.relearner: Relearner | None = None
        self.met: Tensor = torch.zeros(())
        self.pressure: dict[str, Tensor] = {}

    @classmethod
    def reference_layers(cls, config: MethodConfig, hook_layer: int, n_blocks: int) -> tuple[int, ...]:
        """Every block."""
        return tuple(range(n_blocks))

    def setup(self, lm: PreTrainedModel) -> None:
        """Sort the forget rows by fact."""
        self.relearner = Relearner(
            lm, self.config, self.data.streams["forget"], self.reader, self.context.seed, self.data.streams["retain"]
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Nothing outlives a step: every adversary begins with it and depends on its number alone."""
        return {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Let an adversary train, and average the gradients of the loss on its way."""
        c, relearner = self.config, made(self.relearner)
        relearner.begin(lm, step)
        batch = relearner.batch(relearner.questions(step), device_of(lm))

        def resistance() -> Tensor:
            return negative_entropy(forward(lm, batch).logits_AV).mean()

        found = [relearner.adversary.gradients(lm, resistance)]
        for part in range(c.adversary_steps):
            relearner.attack(lm, step, part)
            if part + 1 in measured_after(c.adversary_steps, c.points):
                found.append(relearner.adversary.gradients(lm, resistance))
        self.met = torch.stack([value for value, _ in found]).mean()
        self.pressure = {name: torch.stack([gradients[name] for _, gradients in found]).mean(0) for name in found[0][1]}

    def adjust_gradients(self, lm: PreTrainedModel) -> None:
        """Add the gradient at the adversary's weights."""
        add_gradients(lm, self.pressure, self.config.resistance_weight)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (the tamper-resistance loss, without a graph), ``retain``, ``retain_hidden``, before weighting."""
        c, rows, reference = self.config, batch["retain"], self.context.reference
        if reference is None:
            raise ValueError("tar needs a reference in its context")
        layers = range(self.context.n_blocks)
        out = forward(lm, rows, layers=layers)
        mask_BT = rows.attention_mask_BT.bool().clone()
        mask_BT[:, 0] = False
        moved = [relative_change(out.hidden[n][mask_BT], reference.hidden(rows, n)[mask_BT]) for n in layers]
        retain, hidden = mean(token_nll(out.logits_AV, out.targets_A)), torch.stack(moved).mean()
        forget = self.met.to(retain.device)
        total = c.resistance_weight * forget + c.retain_weight * (retain + c.hidden_weight * hidden)
        return LossTerms(total, {"forget": forget, "retain": retain, "retain_hidden": hidden})
