"""Metrics of a teacher-forced pass.

``update`` takes the logits at the answer positions as ``unlearn.functional.tokens.answer_logits`` gives them: ``logits_AV`` (that
predict the labelled tokens), ``targets_A`` and ``row_A`` (row of the batch, ascending), so that one pass feeds a whole
``torchmetrics.MetricCollection``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from unlearn.functional.memorisation import exact_memorisation, extraction_strength, probability, truth_ratio, truth_ratio_score
from unlearn.functional.tokens import token_nll
from unlearn.metrics.rows import RowMean


def _rows(row_A: Tensor) -> int:
    return int(row_A.max()) + 1 if len(row_A) else 0


class Probability(RowMean):
    """Mean over rows of ``unlearn.functional.memorisation.probability``, in [0, 1].

    >>> metric = Probability()
    >>> metric.update(torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    >>> metric.compute()
    tensor(0.2500)
    """

    higher_is_better: bool = True
    key: ClassVar[str] = "probability"

    def update(self, logits_AV: Tensor, targets_A: Tensor, row_A: Tensor) -> None:
        """Count in one batch."""
        self.add(probability(token_nll(logits_AV, targets_A), row_A, _rows(row_A)))


class ExactMemorisation(RowMean):
    """Mean over rows of ``unlearn.functional.memorisation.exact_memorisation``, in [0, 1]; options as there.

    >>> metric = ExactMemorisation(eos_id=3)
    >>> metric.update(torch.eye(4)[[0, 1, 3]], torch.tensor([0, 0, 3]), torch.tensor([0, 0, 0]))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better: bool = True
    key: ClassVar[str] = "exact_memorisation"

    def __init__(self, eos_id: int | None = None, compat: bool = False, **kwargs: Any) -> None:
        super().__init__(variant=f"_{eos_id}_{compat}", **kwargs)
        self.eos_id = eos_id
        self.compat = compat

    def update(self, logits_AV: Tensor, targets_A: Tensor, row_A: Tensor) -> None:
        """Count in one batch."""
        self.add(exact_memorisation(logits_AV, targets_A, row_A, _rows(row_A), self.eos_id, self.compat))


class ExtractionStrength(RowMean):
    """Mean over rows of ``unlearn.functional.memorisation.extraction_strength``, in [0, 1]; options as there.

    >>> metric = ExtractionStrength()
    >>> metric.update(torch.eye(4)[[0, 1, 3]], torch.tensor([1, 1, 3]), torch.tensor([0, 0, 0]))
    >>> metric.compute()
    tensor(0.6667)
    """

    higher_is_better: bool = True
    key: ClassVar[str] = "extraction_strength"

    def __init__(self, eos_id: int | None = None, compat: bool = False, **kwargs: Any) -> None:
        super().__init__(variant=f"_{eos_id}_{compat}", **kwargs)
        self.eos_id = eos_id
        self.compat = compat

    def update(self, logits_AV: Tensor, targets_A: Tensor, row_A: Tensor) -> None:
        """Count in one batch."""
        self.add(extraction_strength(logits_AV, targets_A, row_A, _rows(row_A), self.eos_id, self.compat))


class TruthRatio(RowMean):
    """Mean over rows of a reading of the truth ratio, in [0, 1]: ``unlearn.functional.memorisation.truth_ratio_score``.

    Args:
        score: ``forget``, ``utility`` or ``probability``. Higher is better in its own sense: ``forget`` where a model should have
            forgotten, the other two where it should know.

    >>> metric = TruthRatio("utility")
    >>> metric.update(torch.tensor([1.0]), torch.tensor([[2.0, 3.0]]))
    >>> metric.compute()
    tensor(0.7769)
    """

    higher_is_better: bool = True
    key: ClassVar[str] = "truth_ratio"

    def __init__(self, score: str = "forget", **kwargs: Any) -> None:
        super().__init__(variant=f"_{score}", **kwargs)
        truth_ratio_score(torch.ones(1), score)
        self.score = score

    def update(self, paraphrase_nll_B: Tensor, perturbed_nll_BK: Tensor) -> None:
        """Count in one batch: mean negative log-likelihood per token of the right answer and of each wrong one (nan where missing)."""
        self.add(truth_ratio_score(truth_ratio(paraphrase_nll_B, perturbed_nll_BK), self.score))


class Perplexity(Metric):
    """``exp`` of the mean negative log-likelihood over all labelled tokens, >= 1; nan before the first token.

    >>> metric = Perplexity()
    >>> metric.update(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    >>> metric.compute()
    tensor(4.)
    """

    full_state_update: bool = False
    is_differentiable: bool = False
    higher_is_better: bool = False
    key: ClassVar[str] = "perplexity"
    nll_sum: Tensor
    tokens: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nll_sum", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("tokens", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits_AV: Tensor, targets_A: Tensor) -> None:
        """Count in one batch."""
        self.nll_sum = self.nll_sum + token_nll(logits_AV, targets_A).detach().sum().to(self.nll_sum)
        self.tokens = self.tokens + len(targets_A)

    def compute(self) -> Tensor:
        """The perplexity, a scalar."""
        return (self.nll_sum / self.tokens).exp()
