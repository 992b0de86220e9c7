"""CodeEraser: gradient ascent on the sensitive stretches of a row, ordinary training on the rest of it, a KL tether.

Paper: Chu et al., "Scrub It Out! Erasing Sensitive Memorization in Code Language Models via Machine Unlearning" (arXiv 2509.13755).
``-mean_S nll + rest_weight * mean_R nll + kl_weight * KL(p_ref || p)``: S the answer tokens of forget rows inside a sensitive stretch, R
their other answer tokens.

The body of the paper was not available; this is a reconstruction from its summaries. They put the KL constraint on sensitive stretches
without saying whose. On the forget rows' own ones it cancels the ascent at equal weights, all but a remainder (where the original model
is sure of a token, the divergence is that token's negative log-likelihood), so ``constraint: retain`` takes the stretches of retain rows;
``forget`` is the other reading. Weights are free choices. The paper finds secrets with a detector made of regular expressions; here
``spans`` lists such expressions, searched in the text of each answer. Without any the whole answer is sensitive; what follows it (an
end-of-sequence token) is the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig
from unlearn.data.spans import answer_masks, batch_mask
from unlearn.errors import DataError
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.ranks import masked_mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.base import Method
from unlearn.models.forward import Forward, forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def _readable(pattern: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class CodeEraserConfig(MethodConfig):
    """What is sensitive, and the weights of the three parts."""

    spans: list[str] = field(default_factory=list)
    """regular expressions searched in the answers; what they find is sensitive; none: the whole answer is"""
    constraint: str = "retain"
    """rows on whose sensitive stretches the KL to the original model is taken: retain, forget or none"""
    forget_weight: float = 1.0
    """weight of the ascent, >= 0"""
    rest_weight: float = 1.0
    """weight of the cross-entropy on the rest of the forget rows, >= 0"""
    kl_weight: float = 1.0
    """weight of the KL constraint, >= 0"""

    def __post_init__(self) -> None:
        for pattern in self.spans:
            check(bool(pattern) and _readable(pattern), "method.spans", "regular expressions", pattern)
        one_of(self.constraint, ("retain", "forget", "none"), "method.constraint")
        for name in ("forget_weight", "rest_weight", "kl_weight"):
            check(0 <= getattr(self, name) < float("inf"), f"method.{name}", "finite and >= 0", getattr(self, name))


def code_eraser_loss(nll_A: Tensor, sensitive_A: Tensor) -> tuple[Tensor, Tensor]:
    """``(-mean_S nll, mean_R nll)``: ascent on sensitive tokens, cross-entropy on the others, scalars.

    >>> import torch
    >>> code_eraser_loss(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True]))
    (tensor(-3.5000), tensor(2.))

    Args:
        nll_A: negative log-likelihood of each answer token of the forget rows, in nats.
        sensitive_A: whether it lies in a sensitive stretch.
    """
    return -masked_mean(nll_A, sensitive_A), masked_mean(nll_A, ~sensitive_A)


class CodeEraser(Method):
    """Raises the loss of sensitive stretches and nothing else in the same row."""

    name = "code_eraser"
    family = "likelihood"
    summary = "ascent on sensitive stretches only, cross-entropy on the rest of the row, KL constraint"
    paper = "https://arxiv.org/abs/2509.13755"
    streams = ("forget", "retain")
    needs = frozenset({"rows", "reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.forget_weight": {"low": 0.03, "high": 3.0, "log": True},
        "method.kl_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = CodeEraserConfig
    config: CodeEraserConfig
    sensitive: dict[int, tuple[bool, ...]]

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The rows; the reference unless there is no constraint."""
        return frozenset({"rows"}) if isinstance(config, CodeEraserConfig) and config.constraint == "none" else cls.needs

    @classmethod
    def streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """The retain stream only for a constraint on it."""
        return cls.streams if isinstance(config, CodeEraserConfig) and config.constraint == "retain" else ("forget",)

    @classmethod
    def reference_streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """The stream of the constraint."""
        constraint = config.constraint if isinstance(config, CodeEraserConfig) else "none"
        return () if constraint == "none" else (constraint,)

    def setup(self, lm: PreTrainedModel) -> None:
        """Find the sensitive tokens of every forget and retain row.

        Raises:
            DataError: no forget row holds one.
        """
        data, reader = self.context.data, self.context.reader
        if data is None or reader is None:
            raise ValueError("code_eraser needs rows and a reader in its context")
        patterns = [re.compile(pattern) for pattern in self.config.spans]
        self.sensitive = answer_masks(data.streams["forget"], reader, patterns)
        if not any(any(mask) for mask in self.sensitive.values()):
            raise DataError(f"method.spans must be found in the answers of the forget rows; found nothing for {self.config.spans}.")
        if self.config.constraint == "retain":
            self.sensitive |= answer_masks(data.streams["retain"], reader, patterns)

    def divergence(self, batch: TokenBatch, out: Forward) -> Tensor:
        """Mean KL(original || model) over the sensitive tokens of a batch, a scalar."""
        if self.context.reference is None:
            raise ValueError("code_eraser needs a reference in its context")
        return masked_mean(kl_divergence(self.context.reference.logits(batch), out.logits_AV), batch_mask(self.sensitive, batch))

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (negative), ``rest``, ``kl`` where there is a constraint, all before weighting."""
        c, out = self.config, forward(lm, batch["forget"])
        forget, rest = code_eraser_loss(token_nll(out.logits_AV, out.targets_A), batch_mask(self.sensitive, batch["forget"]))
        total, terms = c.forget_weight * forget + c.rest_weight * rest, {"forget": forget, "rest": rest}
        if c.constraint != "none":
            rows = batch[c.constraint]
            terms["kl"] = self.divergence(rows, out if c.constraint == "forget" else forward(lm, rows))
            total = total + c.kl_weight * terms["kl"]
        return LossTerms(total, terms)
