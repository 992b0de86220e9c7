"""Metrics of the mix of kinds of answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from unlearn.errors import DataError
from unlearn.functional.answer_mix import ANSWER_KINDS
from unlearn.functional.statistics import total_variation


def _counts(kinds: Iterable[str], like: Tensor) -> Tensor:
    """How often each of ``ANSWER_KINDS`` occurs."""
    index = []
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind not in ANSWER_KINDS:
            raise DataError(f"kinds must be of {', '.join(ANSWER_KINDS)}; found {kind!r}.")
        index.append(ANSWER_KINDS.index(kind))
    return torch.bincount(torch.tensor(index, dtype=torch.long), minlength=len(ANSWER_KINDS)).to(like)


class AnswerMix(Metric):
    """Share of each kind of answer, in [0, 1], by name; nan before the first answer. Kinds: ``unlearn.functional.answer_mix.answer_kind``.

    >>> metric = AnswerMix()
    >>> metric.update(["refusal", "plausible", "refusal", "correct"])
    >>> {kind: round(float(share), 2) for kind, share in metric.compute().items()}
    {'correct': 0.25, 'plausible': 0.25, 'refusal': 0.5, 'off_topic': 0.0, 'degenerate': 0.0}
    """

    full_state_update: bool = False
    is_differentiable: bool = False
    higher_is_better: None = None
    key: ClassVar[str] = "answer_mix"
    mix_counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("mix_counts", default=torch.zeros(len(ANSWER_KINDS), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, kinds: Sequence[str]) -> None:
        """Count in one batch.

        Raises:
            DataError: an unknown kind.
        """
        self.mix_counts = self.mix_counts + _counts(kinds, self.mix_counts)

    def compute(self) -> dict[str, Tensor]:
        """Share of each kind, scalars."""
        return dict(zip(ANSWER_KINDS, self.mix_counts / self.mix_counts.sum(), strict=True))


class AnswerMixDistance(Metric):
    """Total variation distance between the mix on the target and the mix on unknown entities, in [0, 1]; nan while one is empty.

    0: the target is answered about as strangers are. Samples of one and the same mix lie some way apart by chance; how far is what
    ``unlearn.functional.answer_mix.mix_permutation`` tells.

    >>> metric = AnswerMixDistance()
    >>> metric.update(["refusal", "refusal", "correct", "plausible"], unknown=False)
    >>> metric.update(["refusal", "refusal"], unknown=True)
    >>> metric.compute()
    tensor(0.5000)
    """

    full_state_update: bool = False
    is_differentiable: bool = False
    higher_is_better: bool = False
    key: ClassVar[str] = "answer_mix_distance"
    target_counts: Tensor
    unknown_counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("target_counts", "unknown_counts"):
            self.add_state(name, default=torch.zeros(len(ANSWER_KINDS), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, kinds: Sequence[str], unknown: bool) -> None:
        """Count in one batch of answers about the target, or (``unknown``) about unknown entities.

        Raises:
            DataError: an unknown kind.
        """
        if unknown:
            self.unknown_counts = self.unknown_counts + _counts(kinds, self.unknown_counts)
        else:
            self.target_counts = self.target_counts + _counts(kinds, self.target_counts)

    def compute(self) -> Tensor:
        """The distance, a scalar."""
        target, unknown = (dict(zip(ANSWER_KINDS, counts.tolist(), strict=True)) for counts in (self.target_counts, self.unknown_counts))
        empty = not (sum(target.values()) and sum(unknown.values()))
        distance = torch.nan if empty else total_variation(target, unknown)
        return torch.tensor(distance, dtype=self.dtype, device=self.device)
