"""UNDO: unlearn by any method, spoil the weights, then distil the unlearned model back into what is left of it.

Paper: Lee, Foote, Infanger, Shor, Kamath, Goldman-Wetzler, Woodworth, Cloud, Turner, "Distillation Robustifies Unlearning"
(arXiv 2506.06278), section on UNDO; the noise is as in the authors' code. A run of n steps has three phases:

1. unlearn: ``method.inner`` for the first ``unlearn_fraction`` of the steps (it is told that these are all there are, and finished);
2. noise, once: ``w <- (1 - alpha) w + alpha beta N`` on every trained weight, N a Xavier-uniform draw for matrices and 0 for vectors (so
   that scales of norms and biases shrink only; ``vectors: keep`` leaves them alone);
3. distil: ``KL(teacher || model)`` over the answer tokens of ``distil_on``, the teacher being the model as phase 1 left it.

Deviations. The paper distils on general pretraining text, at 60-80 % of the cost of pretraining; here the streams of the run are all
there is (retain, known, unknown and forget answers by default), so strong noise is repaired on those only. The teacher shares every
frozen weight with the student, so its trained weights alone are kept (also in checkpoints). The paper starts phase 3 with a fresh
optimiser; here AdamW goes on: its first moments point where phase 1 was heading and are forgotten in some 10 steps, its second moments in
some 1000, so that weights which phase 1 pushed hard move less at first. The learning-rate schedule spans all phases.

The robustness comes from noise on weights that hold the knowledge. With ``model.trainable.mode: lora`` only adapters are shrunk, which
brings the original model back; the paper noises every weight (``model.trainable.mode: full``).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig, TrainableConfig
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.ranks import masked_mean, mean
from unlearn.methods.base import MethodContext, concatenate
from unlearn.methods.wrapper import Wrapper, WrapperConfig
from unlearn.models.forward import forward
from unlearn.types import STREAMS, LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class UndoConfig(WrapperConfig):
    """Length of the phases, strength of the noise, and what is distilled on."""

    unlearn_fraction: float = 0.5
    """share of the steps that run the inner method, in (0, 1); the rest distil"""
    alpha: float = 0.25
    """how far the weights are moved toward noise, in [0, 1]; 1 leaves nothing of them"""
    beta: float = 0.1
    """size of the noise in units of a Xavier initialisation, in [0, 1]"""
    vectors: str = "shrink"
    """what happens to biases and scales of norms: shrink (by 1 - alpha) or keep"""
    distil_on: list[str] = field(default_factory=lambda: ["retain", "unknown", "known", "forget"])
    """streams on which the model imitates the unlearned one: some of forget, retain, known, unknown"""

    def __post_init__(self) -> None:
        check(0 < self.unlearn_fraction < 1, "method.unlearn_fraction", "in (0, 1)", self.unlearn_fraction)
        check(0 <= self.alpha <= 1, "method.alpha", "in [0, 1]", self.alpha)
        check(0 <= self.beta <= 1, "method.beta", "in [0, 1]", self.beta)
        one_of(self.vectors, ("shrink", "keep"), "method.vectors")
        check(bool(self.distil_on), "method.distil_on", "at least one stream", self.distil_on)
        for stream in self.distil_on:
            one_of(stream, STREAMS, "method.distil_on")


def shrink_and_perturb(weight: Tensor, alpha: float, beta: float, generator: torch.Generator) -> Tensor:
    """``(1 - alpha) w + alpha beta N``, a new tensor of the dtype of ``w``; N is Xavier-uniform for a matrix, 0 for a vector.

    >>> shrink_and_perturb(torch.ones(2), 0.25, 0.1, torch.Generator())
    tensor([0.7500, 0.7500])

    Args:
        weight: any shape; of more than two dimensions, the first is the fan-out.
        alpha: share of noise, in [0, 1].
        beta: size of the noise, in [0, 1].
        generator: source of the noise, on the CPU.
    """
    shrunk = (1 - alpha) * weight.detach().float()
    if weight.ndim < 2:
        return shrunk.to(weight.dtype)
    noise = torch.nn.init.xavier_uniform_(torch.empty(weight.shape), generator=generator)
    return (shrunk + alpha * beta * noise.to(weight.device)).to(weight.dtype)


def trained_weights(lm: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of ``lm`` that are trained, by name."""
    return {name: p for name, p in lm.named_parameters() if p.requires_grad}


@contextmanager
def swapped(lm: PreTrainedModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the context the model computes with ``weights`` in the place of its own; no graph must be kept across it."""
    current = {name: p for name, p in lm.named_parameters() if name in weights}
    own = {name: p.data for name, p in current.items()}
    try:
        for name, p in current.items():
            p.data = weights[name]
        yield
    finally:
        for name, p in current.items():
            p.data = own[name]


class Undo(Wrapper):
    """Runs the inner method, then noises the weights once, then distils."""

    name = "undo"
    family = "wrapper"
    summary = "unlearn with another method, add noise to the weights once, distil the unlearned model into the noised one"
    paper = "https://arxiv.org/abs/2506.06278"
    streams = ("forget", "retain", "known", "unknown")
    wraps = True
    sharded = False
    search = {
        "method.inner.name": {"choices": ["grad_diff", "npo"]},
        "method.alpha": {"low": 0.0, "high": 0.6},
        "method.unlearn_fraction": {"low": 0.3, "high": 0.7},
    }
    Config = UndoConfig
    config: UndoConfig

    def __init__(self, config: UndoConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.teacher: dict[str, Tensor] = {}

    @classmethod
    def streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """Streams of the inner method and those that are distilled on."""
        own = config.distil_on if isinstance(config, UndoConfig) else cls.streams
        return cls.with_inner_streams(config, own)

    def trainable(self, n_blocks: int) -> TrainableConfig | None:
        """Every block, whatever the inner method trains: what is not trained is not noised either."""
        return None

    def forget_layer(self) -> int | None:
        """None: distillation needs the logits."""
        return None

    def deepest_layer(self) -> int | None:
        """None: distillation needs the logits."""
        return None

    def get_extra_state(self) -> dict[str, Tensor]:
        """The trained weights of the teacher, empty before the noise."""
        return self.teacher

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take the teacher back; with one, the noise has been applied."""
        self.teacher = dict(state)

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Tell the inner method, or start distilling: the first step past the boundary without a teacher makes one, and the noise."""
        boundary = max(1, round(self.config.unlearn_fraction * steps))
        if step < boundary:
            self.inner.before_step(lm, step, boundary)
        elif not self.teacher:
            self.inner.finish(lm)
            self._spoil(lm)

    @torch.no_grad()
    def _spoil(self, lm: PreTrainedModel) -> None:
        """Keep the teacher, then noise; the noise of a weight depends on the seed and its name alone."""
        for name, weight in trained_weights(lm).items():
            self.teacher[name] = weight.detach().clone()
            if weight.ndim < 2 and self.config.vectors == "keep":
                continue
            generator = torch.Generator().manual_seed(self.context.seed + zlib.crc32(name.encode()))
            weight.copy_(shrink_and_perturb(weight, self.config.alpha, self.config.beta, generator))

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms of the inner method; then ``distil`` and ``forget``, the same divergence on forget rows alone (0 without them)."""
        if not self.teacher:
            return self._unlearn(lm, batch)
        self.teacher = {name: self.teacher[name].to(p.device) for name, p in trained_weights(lm).items()}
        streams = [s for s in STREAMS if s in self.config.distil_on]
        rows = concatenate([batch[s] for s in streams])
        with torch.no_grad(), swapped(lm, self.teacher):
            wanted_AV = forward(lm, rows).logits_AV
        out = forward(lm, rows)
        divergence_A = kl_divergence(wanted_AV, out.logits_AV)
        first = sum(len(batch[s].row_id_B) for s in streams[: streams.index("forget")]) if "forget" in streams else 0
        last = first + len(batch["forget"].row_id_B) if "forget" in streams else 0
        own_A = (out.row_A >= first) & (out.row_A < last)
        forget, total = masked_mean(divergence_A.detach(), own_A), mean(divergence_A)
        return LossTerms(total, {"forget": forget, "distil": total})

    def _unlearn(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """The inner loss; weights that it never reaches get a gradient of zero, so that processes wait for none of them."""
        out = self.inner.loss(lm, batch)
        if self.inner.deepest_layer() is None:
            return out
        idle = torch.stack([0.0 * p.flatten()[0].float() for p in trained_weights(lm).values()]).sum()
        return LossTerms(out.total + idle, out.terms)

    def adjust_gradients(self, lm: PreTrainedModel) -> None:
        """Let the inner method change the gradients of its own phase."""
        if not self.teacher:
            self.inner.adjust_gradients(lm)

    def finish(self, lm: PreTrainedModel) -> None:
        """Nothing where phase 1 has been finished; a run too short for phase 3 finishes the inner method here."""
        if not self.teacher:
            self.inner.finish(lm)
