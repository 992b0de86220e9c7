"""UNDIAL: the model learns from its former self, with the logit of each right token pushed down.

Paper: Dong et al., "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models" (arXiv 2402.10052). The
target is ``softmax(z_ref - beta * onehot(y))``, fixed for the whole run, so that the loss has a minimum and training converges. No retain
data in the paper; ``retain`` adds a term. Defaults as in the published code (which trains LoRA adapters of rank 8 with a learning rate of
1e-4; here ``model`` and ``optim`` decide).

Deviation: the loss is averaged over answer tokens. The published code averages over every position that predicts something, prompt and
padding included, and where labels are masked its -100 counts from the end of the vocabulary, so that there the logit of token V - 100 is
pushed down. ``compat: true`` does that too; it then keeps a frozen second model in memory, for the stored references hold answer
positions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional as F

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig
from unlearn.errors import ModelError
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import upcast
from unlearn.methods.base import MethodContext
from unlearn.methods.kl_min import Original, every_logit
from unlearn.methods.retain import RetainMethod, TradeOffConfig, retain_needs
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class UNDIALConfig(TradeOffConfig):
    """How far the logits are pushed, and an optional retain term."""

    beta: float = 10.0
    """what is taken off the logit of each right token, finite and >= 0 (3, 10 and 30 are worth trying)"""
    retain: str = "none"
    """nll (cross-entropy on the retain answers), kl (from the original model's predictions) or none (the paper)"""
    compat: bool = False
    """average over prompt and padding as well, as the published code does; needs memory for a second model"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.beta < float("inf"), "method.beta", "finite and >= 0", self.beta)


def undial_loss(ref_logits_AV: Tensor, logits_AV: Tensor, targets_A: Tensor, beta: float) -> Tensor:
    """``mean_t -sum_v q_t(v) log p_t(v)`` with ``q = softmax(z_ref - beta * onehot(y))``; a scalar >= 0, float32 at least.

    Args:
        ref_logits_AV: logits of the original model, shape [A, V].
        logits_AV: logits of the model, shape [A, V].
        targets_A: the right tokens, shape [A].
        beta: what is taken off their logits.

    >>> import math, torch
    >>> ref_AV, now_AV = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> loss = undial_loss(ref_AV, now_AV, torch.tensor([0]), beta=math.log(3))  # q = (1/4, 3/4), the entropy of p
    >>> round(loss.item(), 4)
    0.5623
    """
    lowered_AV = upcast(ref_logits_AV).detach() - beta * F.one_hot(targets_A, ref_logits_AV.shape[-1])
    return -mean((lowered_AV.softmax(-1) * upcast(logits_AV).log_softmax(-1)).sum(-1))


def counted_from_the_end(labels_BT: Tensor, n_tokens: int) -> Tensor:
    """Token of every label but the first of each row, [B, T - 1], where a label of -100 is token ``n_tokens - 100``.

    Raises:
        ModelError: the vocabulary is smaller than that.

    >>> import torch
    >>> counted_from_the_end(torch.tensor([[1, -100, 5]]), 128)
    tensor([[28,  5]])
    """
    labels_BT = labels_BT[:, 1:]
    if bool((labels_BT < -n_tokens).any()):
        raise ModelError(
            f"method.compat needs a vocabulary of at least 100 tokens, for masked labels count from its end; found {n_tokens}."
        )
    return labels_BT.remainder(n_tokens)


class UNDIAL(RetainMethod):
    """Self-distillation with adjusted logits."""

    name = "undial"
    family = "likelihood"
    summary = "distil the original model's predictions with the logit of each right token pushed down"
    paper = "https://arxiv.org/abs/2402.10052"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("forget", "retain")
    search = {
        "method.beta": {"low": 3.0, "high": 100.0, "log": True},
        "method.retain": {"choices": ["none", "nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True, "when": {"method.retain": ["nll", "kl"]}},
    }
    Config = UNDIALConfig
    config: UNDIALConfig

    def __init__(self, config: UNDIALConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.original: Original | None = None

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The stored reference, unless ``compat`` does without and the retain term too."""
        return super().required(config) | retain_needs("none" if isinstance(config, UNDIALConfig) and config.compat else "kl")

    @classmethod
    def reference_streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """Forget rows for the target, retain rows for ``retain: kl``."""
        if not isinstance(config, UNDIALConfig):
            return cls.reference_streams
        used = {"forget": not config.compat, "retain": config.retain == "kl"}
        return tuple(stream for stream in cls.reference_streams if used[stream])

    def setup(self, lm: PreTrainedModel) -> None:
        """Copy the model for ``compat``."""
        self.original = Original(lm) if self.config.compat else None

    def _distil(self, lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
        if self.original is not None:
            before_BTV, now_BTV = self.original.logits(batch)[:, :-1], every_logit(lm, batch)[:, :-1]
            targets_BT = counted_from_the_end(batch.labels_BT, now_BTV.shape[-1])
            return undial_loss(before_BTV.flatten(0, 1), now_BTV.flatten(0, 1), targets_BT.flatten(), self.config.beta)
        if self.context.reference is None:
            raise ValueError("undial needs a reference in its context")
        out = forward(lm, batch)
        return undial_loss(self.context.reference.logits(batch), out.logits_AV, out.targets_A, self.config.beta)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` and, with a retain term, ``retain``."""
        return self.held(lm, batch, self._distil(lm, batch["forget"]), self.config.forget_weight)
