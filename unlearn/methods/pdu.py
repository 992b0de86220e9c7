"""Primal-dual unlearning: flatten the logits on forget answers, subject to a bound on the retain loss.

Paper: Entesari et al., "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models" (arXiv 2506.05314).
Minimise ``mean (max_v z - mean_v z)^2`` on the forget answers subject to ``L_retain <= eps``. The optimiser lowers the Lagrangian
``forget + lam * (L_retain - eps)``; after each step ``lam <- max(0, lam + eta * (L_retain - eps))``, once a warm-up with fixed ``lam`` is
over.

Reconstruction: the formulas are those of the published code and of the paper's abstract. eta = 1 and a warm-up of half the run (5 of 10
epochs) are the published settings as far as known; ``retain_weight`` = 50 and ``eps`` = 0.3 are orders of magnitude that re-runs of the
paper give for it (from 50 to 100, and from 0.1 to 1.5), not read in its tables. ``eps`` has to be set for model and data: a
little above the retain loss of the original model.

Deviations: the forget loss is averaged over answer tokens, where the published code takes prompt and padding too; ``lam`` follows the
mean retain loss of the whole optimiser step (all micro-batches, all processes), where the published code moves it per micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import distributed

from unlearn.config.checks import check
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import upcast
from unlearn.methods.base import MethodContext
from unlearn.methods.retain import RetainMethod, TradeOffConfig, retain_term
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class PDUConfig(TradeOffConfig):
    """The bound, and how fast its weight moves."""

    RETAIN: ClassVar[tuple[str, ...]] = ("nll", "kl")

    retain: str = "nll"
    """what is bounded: nll (cross-entropy on the retain answers) or kl (from the original model's predictions)"""
    retain_weight: float = 50.0
    """weight of the constraint at the start (lam), finite and >= 0"""
    eps: float = 0.3
    """bound on the retain loss in nats, finite and >= 0"""
    eta: float = 1.0
    """step size of the weight, finite and >= 0; 0 keeps it where it is"""
    warmup: float = 0.5
    """share of the run during which the weight stays where it is, in [0, 1]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eps", "eta"):
            check(0 <= getattr(self, name) < float("inf"), f"method.{name}", "finite and >= 0", getattr(self, name))
        check(0 <= self.warmup <= 1, "method.warmup", "in [0, 1]", self.warmup)


def margin_loss(logits_AV: Tensor) -> Tensor:
    """``mean_t (max_v z_t(v) - mean_v z_t(v))^2``, a scalar >= 0, float32 at least; 0 where every token is as likely as every other.

    Args:
        logits_AV: logits at the answer positions, shape [A, V].

    >>> margin_loss(torch.tensor([[0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]))
    tensor(2.)
    """
    logits_AV = upcast(logits_AV)
    return mean((logits_AV.amax(-1) - logits_AV.mean(-1)).square())


def dual_step(weight: Tensor, retain: Tensor, *, eta: float, eps: float) -> Tensor:
    """``max(0, weight + eta * (retain - eps))``: the weight of the constraint grows while it is broken and shrinks while it holds.

    >>> dual_step(torch.tensor(1.0), torch.tensor(0.75), eta=2.0, eps=0.5)
    tensor(1.5000)
    >>> dual_step(torch.tensor(1.0), torch.tensor(0.0), eta=4.0, eps=0.5)
    tensor(0.)
    """
    return (weight + eta * (retain - eps)).clamp(min=0)


class PDU(RetainMethod):
    """Flat logits on forget rows while the retain loss stays below a bound."""

    name = "pdu"
    family = "likelihood"
    summary = "flatten the logits on forget answers under a bound on the retain loss whose weight adapts"
    paper = "https://arxiv.org/abs/2506.05314"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.eps": {"low": 0.03, "high": 1.0, "log": True},
        "method.retain_weight": {"low": 1.0, "high": 100.0, "log": True},
        "method.retain": {"choices": ["nll", "kl"]},
    }
    Config = PDUConfig
    config: PDUConfig
    weight: Tensor
    seen: Tensor

    def __init__(self, config: PDUConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.register_buffer("weight", torch.tensor(config.retain_weight), persistent=False)
        self.register_buffer("seen", torch.zeros(2), persistent=False)
        self.moving = config.warmup == 0

    def get_extra_state(self) -> Tensor:
        """Weight of the constraint, for checkpoints."""
        return self.weight.detach().cpu().clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the weight of the checkpoint."""
        self.weight.copy_(state)

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """End the warm-up when it is time; forget the retain losses of the last step."""
        self.moving = step >= self.config.warmup * steps
        self.seen.zero_()

    def adjust_gradients(self, lm: PreTrainedModel) -> None:
        """Move the weight for the next step; the gradients stay as they are."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.seen)
        if self.moving and self.seen[1] > 0:
            self.weight.copy_(dual_step(self.weight, self.seen[0] / self.seen[1], eta=self.config.eta, eps=self.config.eps))

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, ``retain``, ``retain_weight`` (of the constraint, at this step)."""
        forget = margin_loss(forward(lm, batch["forget"]).logits_AV)
        retain = retain_term(lm, batch["retain"], self.context, self.config.retain)
        self.seen.copy_(torch.stack([retain.detach().float(), torch.ones_like(self.seen[0])]))  # of the whole step, in every micro-batch
        weight = self.weight.clone()
        total = self.config.forget_weight * forget + weight * (retain - self.config.eps)
        return LossTerms(total, {"forget": forget, "retain": retain, "retain_weight": weight})
