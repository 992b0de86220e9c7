"""CE-U: cross-entropy to the model's own prediction with the right token ruled out.

Paper: Yang, "CE-U: Cross Entropy Unlearning" (arXiv 2503.01224). The target is the softmax of the model's own logits, as they are now and
without a gradient, where the logit of the right token is minus infinity; at the logits the gradient is ``p - q``, bounded whatever p is.
As in the paper's training settings and the published code the first answer token is left out, for it often says nothing of the fact
("The", "It is"); where answers are one token long that leaves little but the end of the text to unlearn, and ``skip: 0`` is the setting to
take. No retain data in the paper; ``retain`` adds a term.

Deviation: a batch in which no token is left counts 0, where the published code gives nan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import upcast
from unlearn.methods.retain import RetainMethod, TradeOffConfig
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class CEUConfig(TradeOffConfig):
    """What is left out, and an optional retain term."""

    skip: int = 1
    """answer tokens left out at the start of each answer, >= 0"""
    retain: str = "none"
    """nll (cross-entropy on the retain answers), kl (from the original model's predictions) or none (the paper)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.skip >= 0, "method.skip", ">= 0", self.skip)


def number_in_row(row_A: Tensor) -> Tensor:
    """Number of each answer token within its row, from 0: ``[A]``.

    >>> number_in_row(torch.tensor([0, 0, 0, 2, 2]))
    tensor([0, 1, 2, 0, 1])
    """
    return torch.arange(len(row_A), device=row_A.device) - torch.searchsorted(row_A, row_A)


def ce_u_loss(logits_AV: Tensor, targets_A: Tensor, row_A: Tensor, skip: int) -> Tensor:
    """``mean_t -sum_v q_t(v) log p_t(v)``, q the softmax of the logits without the right token; a scalar >= 0, float32 at least.

    Args:
        logits_AV: logits at the answer positions, shape [A, V].
        targets_A: the right tokens, shape [A].
        row_A: row of the batch that each belongs to, ascending, shape [A].
        skip: tokens left out at the start of each row.

    >>> logits_AV = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> round(ce_u_loss(logits_AV, torch.tensor([0]), torch.tensor([0]), skip=0).item(), 4)  # q = (0, 1/2, 1/2): ln 4
    1.3863
    """
    keep_A = number_in_row(row_A) >= skip
    logits_AV, targets_A = upcast(logits_AV[keep_A]), targets_A[keep_A]
    others_AV = logits_AV.detach().scatter(-1, targets_A[:, None], -torch.inf)
    loss_A = -(others_AV.softmax(-1) * logits_AV.log_softmax(-1)).sum(-1)
    return mean(loss_A)


class CEU(RetainMethod):
    """The model becomes what it would say if the right token did not exist."""

    name = "ce_u"
    family = "likelihood"
    summary = "cross-entropy to the model's own prediction with the right token ruled out"
    paper = "https://arxiv.org/abs/2503.01224"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.skip": {"choices": [0, 1]},
        "method.retain": {"choices": ["none", "nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True, "when": {"method.retain": ["nll", "kl"]}},
    }
    Config = CEUConfig
    config: CEUConfig

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` and, with a retain term, ``retain``."""
        out = forward(lm, batch["forget"])
        return self.held(lm, batch, ce_u_loss(out.logits_AV, out.targets_A, out.row_A, self.config.skip), self.config.forget_weight)
