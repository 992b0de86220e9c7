"""KL minimisation: gradient ascent on the forget answers, tied to the original model's predictions on retain rows.

Paper: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs" (arXiv 2401.06121), section 4, after Liu et al. (arXiv 2203.12817):
``-mean nll(forget) + alpha * mean KL(p_ref || p)``.

Deviation: the divergence is averaged over answer tokens. The published code averages over every position of the retain batch, prompt and
padding included, so that the weight of the term falls with the padding; ``compat: true`` does that too. It then keeps a frozen second
model in memory, for the stored references hold answer positions only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.base import Method, MethodContext
from unlearn.methods.gradient_ascent import gradient_ascent_loss
from unlearn.methods.retain import retain_term
from unlearn.models.decoder import base_of
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class KLMinConfig(MethodConfig):
    """Weights of the two halves."""

    forget_weight: float = 1.0
    """weight of the ascent (gamma), finite and >= 0"""
    retain_weight: float = 1.0
    """weight of the divergence (alpha), finite and >= 0"""
    compat: bool = False
    """average the divergence over prompt and padding as well, as the published code does; needs memory for a second model"""

    def __post_init__(self) -> None:
        for name in ("forget_weight", "retain_weight"):
            check(0 <= getattr(self, name) < float("inf"), f"method.{name}", "finite and >= 0", getattr(self, name))


def kl_min_loss(forget_nll_A: Tensor, retain_kl_N: Tensor, *, forget_weight: float = 1.0, retain_weight: float = 1.0) -> Tensor:
    """``-gamma * mean(forget_nll) + alpha * mean(retain_kl)``.

    Args:
        forget_nll_A: negative log-likelihood of each forget answer token in nats, shape [A].
        retain_kl_N: KL(original || model) in nats, at the retain answer tokens or, for ``compat``, at every position; shape [N] or a mean.
        forget_weight: gamma.
        retain_weight: alpha.

    >>> kl_min_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.5]), retain_weight=2.0)
    tensor(0.)
    """
    return forget_weight * gradient_ascent_loss(forget_nll_A) + retain_weight * retain_kl_N.mean()


def every_logit(lm: nn.Module, batch: TokenBatch) -> Tensor:
    """Logits [B, T, V] of the whole batch, prompt and padding included."""
    output: Any = base_of(lm)(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False, return_dict=True)
    logits_BTV: Tensor = output.logits
    return logits_BTV


class Original:
    """A frozen copy of the model as it was, for what the stored references do not hold; no module, so that nothing trains or saves it."""

    def __init__(self, lm: nn.Module) -> None:
        self.lm = copy.deepcopy(base_of(lm)).requires_grad_(False).eval()

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """Logits [B, T, V] of the whole batch."""
        return every_logit(self.lm.to(batch.input_ids_BT.device), batch)


class KLMin(Method):
    """Gradient ascent tied to the original model on retain rows."""

    name = "kl_min"
    family = "likelihood"
    summary = "gradient ascent plus KL from the original model's predictions on the retain rows"
    paper = "https://arxiv.org/abs/2401.06121"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.forget_weight": {"low": 0.03, "high": 3.0, "log": True},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = KLMinConfig
    config: KLMinConfig

    def __init__(self, config: KLMinConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.original: Original | None = None

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """No stored reference for ``compat``."""
        return frozenset() if isinstance(config, KLMinConfig) and config.compat else cls.needs

    def setup(self, lm: PreTrainedModel) -> None:
        """Copy the model for ``compat``."""
        self.original = Original(lm) if self.config.compat else None

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (negative), ``retain`` (KL), both before weighting."""
        out = forward(lm, batch["forget"])
        nll_A = token_nll(out.logits_AV, out.targets_A)
        if self.original is None:
            retain = retain_term(lm, batch["retain"], self.context, "kl")
        else:
            retain = mean(kl_divergence(self.original.logits(batch["retain"]), every_logit(lm, batch["retain"])))
        total = kl_min_loss(nll_A, retain, forget_weight=self.config.forget_weight, retain_weight=self.config.retain_weight)
        return LossTerms(total, {"forget": gradient_ascent_loss(nll_A), "retain": retain})
