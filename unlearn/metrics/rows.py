"""Mean over rows, the base of most metrics here."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric


class RowMean(Metric):
    """Mean of one value per row, over batches and processes; nan before the first row.

    A subclass sets ``key`` (the last part of its name in the results) and calls ``add`` from ``update``. Rows whose value is nan (nothing
    to score) are left out. The states carry the key in their names, and ``variant`` (what tells two metrics of a class apart), because a
    ``MetricCollection`` joins metrics whose states look alike.
    """

    full_state_update: bool = False
    is_differentiable: bool = False
    key: ClassVar[str]

    def __init__(self, *, variant: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._total, self._rows = f"{self.key}{variant}_sum", f"{self.key}{variant}_rows"
        self.add_state(self._total, default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state(self._rows, default=torch.tensor(0), dist_reduce_fx="sum")

    def add(self, values_B: Tensor) -> None:
        """Count these rows in."""
        total, rows = getattr(self, self._total), getattr(self, self._rows)
        setattr(self, self._total, total + values_B.detach().nansum().to(total))
        setattr(self, self._rows, rows + (~values_B.isnan()).sum().to(rows))

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        mean: Tensor = getattr(self, self._total) / getattr(self, self._rows)
        return mean
