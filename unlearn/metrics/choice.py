"""Metrics of multiple-choice questions."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from unlearn.functional.choice import choice_correct
from unlearn.metrics.rows import RowMean


class ChoiceAccuracy(RowMean):
    """Share of questions whose best-scored option is the right one, in [0, 1]: ``unlearn.functional.choice.choice_correct``.

    Scores come from ``letter_scores`` (as MMLU and WMDP do) or ``likelihood_scores`` (likelihood of the options' texts, by length or not).

    >>> import torch
    >>> metric = ChoiceAccuracy()
    >>> metric.update(torch.tensor([[0.1, 0.7], [0.9, 0.1], [0.5, 0.5]]), torch.tensor([1, 1, 0]))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better: bool = True
    key: ClassVar[str] = "choice_accuracy"

    def update(self, scores_BK: Tensor, answer_B: Tensor) -> None:
        """Count in one batch: score of each option (-inf where there is none), and the index of the right one."""
        self.add(choice_correct(scores_BK, answer_B))
