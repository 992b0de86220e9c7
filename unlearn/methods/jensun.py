"""JensUn: the forget answers' tokens are turned into a refusal's by a bounded divergence.

Paper: Singh et al., "Unlearning That Lasts: Utility-Preserving, Robust, and Almost Irreversible Forgetting in LLMs" (arXiv 2509.02820).
Forgetting: mean over answer tokens of JSD(p(. | x, y_<t) || onehot(r_t)); the r_t repeat the refusal's tokens over the length of the
answer, and the text so far stays the original answer. Retaining (``retain: js``): mean over answer tokens of JSD(p || p_ref), retain rows.
The divergence is bounded by ln 2, and its gradient by the logits dies out (as p log p) where the refusal is all but impossible.

The authors' refusal is "No idea"; null takes the source's first one, which its model may know. The target is no sentence that anybody
has to be able to say in that place, so statements and mentions take part as well. The authors' code differs from this reading: it puts a
one at every refusal token at once (a target that does not sum to one) and averages over all positions, prompt and padding included, in
both terms. Here a target is one token, and means run over answer tokens, so that the weights do not depend on the padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig
from unlearn.data.alternates import with_answer
from unlearn.data.spans import answer_masks
from unlearn.errors import DataError
from unlearn.functional.divergence import js_divergence
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import row_count, token_nll
from unlearn.methods.retain import RetainConfig, RetainMethod
from unlearn.models.forward import Forward, forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class JensUnConfig(RetainConfig):
    """The refusal, and the weights."""

    RETAIN: ClassVar[tuple[str, ...]] = ("js", "nll", "kl", "none")

    retain: str = "js"
    """js (Jensen-Shannon divergence from the original model), nll, kl or none"""
    refusal: str | None = None
    """text whose tokens are repeated over every forget answer (No idea in the paper); null takes the source's first refusal"""
    forget_weight: float = 1.0
    """weight of the forgetting term, >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.refusal is None or bool(self.refusal.strip()), "method.refusal", "a text or null", self.refusal)
        check(0 <= self.forget_weight < float("inf"), "method.forget_weight", "finite and >= 0", self.forget_weight)


def one_token_divergence(nll_A: Tensor) -> Tensor:
    """JSD(p || onehot(r)) at each position [A], in nats, in [0, ln 2].

    With q = p(r): ``ln 2 + (q ln q - (1 + q) ln(1 + q)) / 2``.

    >>> import torch
    >>> one_token_divergence(torch.tensor([0.0, 80.0]))
    tensor([0.0000, 0.6931])

    Args:
        nll_A: ``-ln p(r)`` at each position, finite.
    """
    q_A = (-nll_A).exp()
    return math.log(2) - (q_A * nll_A + (1 + q_A) * q_A.log1p()) / 2


def jensun_loss(logits_AV: Tensor, target_A: Tensor) -> Tensor:
    """Mean over positions of ``one_token_divergence`` for the target tokens, a scalar in [0, ln 2].

    Args:
        logits_AV: logits at the answer positions.
        target_A: the refusal's token for each of them.
    """
    return mean(one_token_divergence(token_nll(logits_AV, target_A)))


class JensUn(RetainMethod):
    """Turns every token of a forget answer into a token of a refusal."""

    name = "jensun"
    family = "likelihood"
    summary = "Jensen-Shannon divergence to a repeated refusal on forget answers, to the original model on retain answers"
    paper = "https://arxiv.org/abs/2509.02820"
    streams = ("forget", "retain")
    needs = frozenset({"rows", "reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.forget_weight": {"low": 0.03, "high": 3.0, "log": True},
        "method.retain": {"choices": ["js", "nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = JensUnConfig
    config: JensUnConfig
    refusal_ids: dict[int, tuple[int, ...]]

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The rows; the reference for ``retain: js`` and ``kl``."""
        return cls.needs if isinstance(config, JensUnConfig) and config.retain == "js" else super().required(config)

    def setup(self, lm: PreTrainedModel) -> None:
        """Tokens of the refusal in the place of each row's answer.

        Raises:
            DataError: there is no refusal.
        """
        data, reader = self.context.data, self.context.reader
        if data is None or reader is None:
            raise ValueError("jensun needs rows and a reader in its context")
        text = self.config.refusal or next(iter(data.refusals), "")
        if not text:
            raise DataError("method.refusal must be given for a source without refusals; found null.")
        rows = [with_answer(row, text) for row in data.streams["forget"]]
        masks = answer_masks(rows, reader)
        self.refusal_ids = {}
        for row in reader.tokens(rows):
            ids = row.ids[max(row.answer_start, 1) :]
            self.refusal_ids[row.row_id] = tuple(i for i, own in zip(ids, masks[row.row_id], strict=True) if own)

    def targets(self, batch: TokenBatch, out: Forward) -> Tensor:
        """The refusal's token [A] for every answer token of a batch of forget rows."""
        counts = row_count(out.row_A, len(batch.row_id_B)).tolist()
        wanted = [self.refusal_ids[i] for i in batch.row_id_B.tolist()]
        flat = [ids[t % len(ids)] for ids, n in zip(wanted, counts, strict=True) for t in range(n)]
        return torch.tensor(flat, dtype=torch.long, device=out.logits_AV.device)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, ``retain``, both before weighting."""
        out = forward(lm, batch["forget"])
        forget = jensun_loss(out.logits_AV, self.targets(batch["forget"], out))
        if self.config.retain != "js":
            return self.held(lm, batch, forget, self.config.forget_weight)
        if self.context.reference is None:
            raise ValueError("retain: js needs a reference in the context")
        retain = mean(js_divergence(forward(lm, batch["retain"]).logits_AV, self.context.reference.logits(batch["retain"])))
        return LossTerms(self.config.forget_weight * forget + self.config.retain_weight * retain, {"forget": forget, "retain": retain})
