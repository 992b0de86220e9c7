"""One number for forgetting and one for what is left: TOFU's forget quality and model utility (arXiv 2401.06121, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from unlearn.errors import ConfigError, DataError
from unlearn.functional.statistics import forget_quality
from unlearn.functional.utility import TOFU_UTILITY, harmonic_mean
from unlearn.metrics.lists import joined


def _ratios(values: Tensor | Sequence[float]) -> Tensor:
    """Ratios without nan (rows without wrong answers); infinite ones become the largest number, which keeps their rank."""
    ratios = torch.as_tensor(values).detach().reshape(-1)
    return ratios[~ratios.isnan()].nan_to_num()


class ForgetQuality(Metric):
    """p-value of the two-sample Kolmogorov-Smirnov test between truth ratios of the model and of a retain model, in [0, 1].

    1: the two cannot be told apart. It saturates near 0 and falls with the number of rows, so look at ``ForgetQualityStatistic`` too.
    Truth ratios: ``unlearn.functional.memorisation.truth_ratio`` on the forget rows. nan before the first one.

    Args:
        reference: truth ratios of the retain model on the same rows, at least one that is not nan.

    >>> metric = ForgetQuality([1.1, 1.2, 1.3])
    >>> metric.update(torch.tensor([0.1, 0.2, 0.3]))
    >>> metric.compute()
    tensor(0.1000)
    """

    full_state_update: bool = False
    is_differentiable: bool = False
    higher_is_better: bool = True
    key: ClassVar[str] = "forget_quality"
    truth_ratios: list[Tensor]

    def __init__(self, reference: Tensor | Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = _ratios(reference).cpu()
        if not len(self.reference):
            raise ConfigError("reference must hold the truth ratios of the retain model; found none.")
        self.add_state("truth_ratios", default=[], dist_reduce_fx="cat")

    def update(self, ratio_B: Tensor) -> None:
        """Count in one batch of truth ratios, >= 0; nan for rows without wrong answers."""
        self.truth_ratios.append(_ratios(ratio_B).to(self.device, self.dtype))

    def _test(self) -> tuple[float, float]:
        ratios = joined(self.truth_ratios)
        if not len(ratios):
            return float("nan"), float("nan")
        return forget_quality(ratios.numpy(), self.reference.to(self.dtype).numpy())

    def compute(self) -> Tensor:
        """The p-value, a scalar."""
        return torch.tensor(self._test()[0], dtype=self.dtype, device=self.device)


class ForgetQualityStatistic(ForgetQuality):
    """Kolmogorov-Smirnov distance between truth ratios of the model and of a retain model, in [0, 1]; 0: they cannot be told apart.

    >>> metric = ForgetQualityStatistic([1.1, 1.2, 1.3])
    >>> metric.update(torch.tensor([0.1, 0.2, 1.4]))
    >>> metric.compute()
    tensor(0.6667)
    """

    higher_is_better: bool = False
    key: ClassVar[str] = "forget_quality_ks"

    def compute(self) -> Tensor:
        """The distance, a scalar."""
        return torch.tensor(self._test()[1], dtype=self.dtype, device=self.device)


class ModelUtility(Metric):
    """Harmonic mean of the means of several parts, >= 0: ``unlearn.functional.utility.harmonic_mean``.

    0 as soon as one part is 0; nan while a part has no rows. Rows whose value is nan are left out.

    Args:
        parts: names of the parts; TOFU's nine unless given.

    >>> metric = ModelUtility(["retain/probability", "retain/rouge_l"])
    >>> metric.update("retain/probability", torch.tensor([0.25, 0.75]))
    >>> metric.update("retain/rouge_l", torch.tensor([1.0]))
    >>> metric.compute()
    tensor(0.6667)
    """

    full_state_update: bool = False
    is_differentiable: bool = False
    higher_is_better: bool = True
    key: ClassVar[str] = "model_utility"
    part_sums: Tensor
    part_rows: Tensor

    def __init__(self, parts: Sequence[str] = TOFU_UTILITY, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(parts, str) or not len(parts) or len(set(parts)) != len(parts):
            raise ConfigError(f"parts must be a list of different names, at least one; found {parts!r}.")
        self.parts = tuple(parts)
        self.add_state("part_sums", default=torch.zeros(len(parts)), dist_reduce_fx="sum")
        self.add_state("part_rows", default=torch.zeros(len(parts), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, part: str, values_B: Tensor) -> None:
        """Count in rows of one part, values >= 0.

        Raises:
            DataError: no such part.
        """
        if part not in self.parts:
            raise DataError(f"part must be one of {', '.join(self.parts)}; found {part!r}.")
        place = torch.tensor([self.parts.index(part)], device=self.device)
        values_B = values_B.detach()
        self.part_sums = self.part_sums.index_add(0, place, values_B.nansum()[None].to(self.part_sums))
        self.part_rows = self.part_rows.index_add(0, place, (~values_B.isnan()).sum()[None].to(self.part_rows))

    def compute(self) -> Tensor:
        """The harmonic mean, a scalar."""
        return torch.tensor(harmonic_mean((self.part_sums / self.part_rows).tolist()), dtype=self.dtype, device=self.device)
