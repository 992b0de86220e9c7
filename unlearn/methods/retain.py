"""The retain term that many methods share: cross-entropy on the retain answers, or a tether to the original model's predictions.

Sources: Liu et al., "Continual Learning and Private Unlearning" (arXiv 2203.12817) for the KL tether; TOFU (arXiv 2401.06121), section 4,
for both as parts of a baseline. The divergence is KL(original || model), averaged over answer tokens; code bases that average over prompt
and padding as well make the weight of the term depend on the padding (``kl_min`` has a switch for that).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.base import Method, MethodContext
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class RetainConfig(MethodConfig):
    """What holds the model in place on retain rows, and how hard."""

    RETAIN: ClassVar[tuple[str, ...]] = ("nll", "kl", "none")
    """choices of ``retain``; a subclass may allow fewer"""

    retain: str = "nll"
    """nll (cross-entropy on the retain answers), kl (from the original model's predictions) or none"""
    retain_weight: float = 1.0
    """weight of the retain term (alpha), finite and >= 0"""

    def __post_init__(self) -> None:
        one_of(self.retain, self.RETAIN, "method.retain")
        check(0 <= self.retain_weight < float("inf"), "method.retain_weight", "finite and >= 0", self.retain_weight)


@dataclass(frozen=True, kw_only=True)
class TradeOffConfig(RetainConfig):
    """A retain term, and a weight for the forgetting term as well."""

    forget_weight: float = 1.0
    """weight of the forgetting term (gamma), finite and >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.forget_weight < float("inf"), "method.forget_weight", "finite and >= 0", self.forget_weight)


def retain_needs(kind: str) -> frozenset[str]:
    """What a retain term needs of ``MethodContext``.

    >>> sorted(retain_needs("kl")), sorted(retain_needs("nll"))
    (['reference_logprobs'], [])
    """
    return frozenset({"reference_logprobs"}) if kind == "kl" else frozenset()


def retain_term(lm: PreTrainedModel, batch: TokenBatch, context: MethodContext, kind: str) -> Tensor:
    """Mean over the answer tokens of one batch of retain rows, a scalar >= 0 in nats; float32 at least.

    Args:
        lm: the language model.
        batch: rows of a stream that is kept; for ``kl`` one whose reference is stored.
        context: holds the reference for ``kl``.
        kind: nll (``mean -log p(y_t)``), kl (``mean KL(p_ref || p)``), or none (0, without a forward pass).

    Raises:
        ValueError: ``kl`` without a reference in the context.
    """
    if kind == "none":
        return torch.zeros((), device=batch.input_ids_BT.device)
    out = forward(lm, batch)
    if kind == "nll":
        return mean(token_nll(out.logits_AV, out.targets_A))
    if context.reference is None:
        raise ValueError("retain: kl needs a reference in the context")
    return mean(kl_divergence(context.reference.logits(batch), out.logits_AV))


class RetainMethod(Method, ABC):
    """A method with a forgetting term of its own and the shared retain term; a subclass adds the literals and the forgetting term.

    The subclass declares ``streams`` with ``retain`` among them, ``needs`` with ``reference_logprobs`` and
    ``reference_streams = ("retain",)``; what its configuration does not use is left out here.
    """

    config: RetainConfig

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The reference log-probabilities only for ``retain: kl``."""
        kind = config.retain if isinstance(config, RetainConfig) else "none"
        return (cls.needs - retain_needs("kl")) | retain_needs(kind)

    @classmethod
    def streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """Without the retain rows for ``retain: none``."""
        unused = {"retain"} if isinstance(config, RetainConfig) and config.retain == "none" else set()
        return tuple(stream for stream in cls.streams if stream not in unused)

    def held(
        self,
        lm: PreTrainedModel,
        batch: Mapping[str, TokenBatch],
        loss: Tensor,
        weight: float = 1.0,
        terms: Mapping[str, Tensor] | None = None,
    ) -> LossTerms:
        """``weight * loss + retain_weight * retain``.

        Args:
            lm: the language model.
            batch: the streams; of ``retain`` the rows are read here.
            loss: the forgetting loss, a scalar.
            weight: its weight.
            terms: what to report of it; ``loss`` as ``forget`` where nothing is given. ``retain`` is added, before weighting.
        """
        named = dict(terms or {"forget": loss})
        if self.config.retain == "none":
            return LossTerms(weight * loss, named)
        named["retain"] = retain_term(lm, batch["retain"], self.context, self.config.retain)
        return LossTerms(weight * loss + self.config.retain_weight * named["retain"], named)
