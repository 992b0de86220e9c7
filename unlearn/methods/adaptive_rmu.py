"""Adaptive representation misdirection: as RMU, with the length of the target taken from the model's own activations.

Paper: Huu-Tien et al., "On Effects of Steering Latent Representation for Large Language Model Unlearning" (arXiv 2408.06223), section 4.

    L = mean_t |h(x_forget, t) - beta * |h_original| * u|^2 / D + alpha * mean_t |h(x_retain, t) - h_original(x_retain, t)|^2 / D

A fixed coefficient that is small against the norm of the hidden states, as it becomes in later layers, hardly steers at all;
``scale`` (beta) times that norm fits any layer of any model. ``form: token`` is the paper's formula, in which every token has its own
original norm; ``form: batch`` is what a public port does: one coefficient for all, beta times the mean norm. The port measures the
mean on the first batch; here it is the mean over all forget rows, which depends on neither the order nor the number of devices.
Everything else, what is trained included, is ``unlearn.methods.rmu``; alpha is that of the RMU paper.
The paper's body was not at hand: its formula is a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig
from unlearn.errors import DataError
from unlearn.functional.tokens import upcast
from unlearn.methods.rmu import Steering, SteeringConfig, token_mask
from unlearn.models.capture import capture
from unlearn.models.decoder import adapters_off, device_of, evaluating
from unlearn.types import TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FORMS = ("batch", "token")


@dataclass(frozen=True, kw_only=True)
class AdaptiveRMUConfig(SteeringConfig):
    """How far, in units of the original norm."""

    retain_weight: float = 1200.0
    """weight of the mean squared change of the retain activations (alpha), >= 0; small models and short rows need about 10"""
    scale: float = 5.0
    """length of the target vector over the norm of the original activations (beta), > 0"""
    form: str = "batch"
    """batch (one length: the mean norm over the tokens of all forget rows) or token (each token's own norm)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.scale > 0, "method.scale", "> 0", self.scale)
        one_of(self.form, FORMS, "method.form")


def adaptive_target(hidden_BTD: Tensor, control_D: Tensor, scale: float) -> Tensor:
    """``scale * |h| * u`` for every token: [B, T, D], fp32 or wider.

    >>> import torch
    >>> adaptive_target(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]), torch.tensor([1.0, 0.0]), scale=2.0)
    tensor([[[10.,  0.],
             [ 2.,  0.]]])
    """
    return scale * upcast(hidden_BTD).norm(dim=-1, keepdim=True) * control_D


class AdaptiveRMU(Steering):
    """The target is a random direction, at a multiple of the original norm."""

    name = "adaptive_rmu"
    family = "representation"
    summary = "RMU whose target length is a multiple of the activations' own norm"
    paper = "https://arxiv.org/abs/2408.06223"
    streams = ("forget", "retain")
    needs = frozenset({"reference_hidden", "rows"})
    reference_streams = ("forget", "retain")
    search = {
        "method.retain_weight": {"low": 1.0, "high": 1200.0, "log": True},
        "method.scale": {"low": 1.0, "high": 20.0, "log": True},
        "method.tokens": {"choices": ["all", "predictors"]},
    }
    Config = AdaptiveRMUConfig
    config: AdaptiveRMUConfig

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The rows only for the mean norm."""
        return cls.needs if config.form == "batch" else frozenset({"reference_hidden"})  # type: ignore[attr-defined]

    @classmethod
    def reference_streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """The forget rows only for each token's norm."""
        return ("retain",) if config.form == "batch" else cls.reference_streams  # type: ignore[attr-defined]

    def setup(self, lm: PreTrainedModel) -> None:
        """Draw the control vector; measure the mean norm over the forget rows."""
        super().setup(lm)
        if self.config.form == "batch":
            self.coefficient = self.config.scale * self._mean_norm(lm)

    def _mean_norm(self, lm: PreTrainedModel) -> float:
        """Mean length of the original activations over the tokens that count."""
        if self.context.reader is None or self.context.data is None:
            raise ValueError("adaptive_rmu needs rows in its context")
        total, count = 0.0, 0
        with evaluating(lm), adapters_off(lm):
            for batch in self.context.reader.batches(self.context.data.streams["forget"], device_of(lm)):
                norms_N = capture(lm, batch, self.layer)[token_mask(batch, self.config.tokens)].double().norm(dim=-1)
                total, count = total + norms_N.sum().item(), count + len(norms_N)
        if not count:
            raise DataError("The forget stream must have rows with tokens that count (method.tokens); found none.")
        return total / count

    def target(self, batch: TokenBatch) -> Tensor:
        """``coefficient * u``, [D], or each token's own length, [B, T, D]."""
        if self.config.form == "batch":
            return self.coefficient * self.control_D
        if self.context.reference is None:
            raise ValueError("adaptive_rmu needs a reference in its context")
        return adaptive_target(self.context.reference.hidden(batch, self.layer), self.control_D, self.config.scale)
