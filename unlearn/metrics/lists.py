"""States that keep every value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined(state: Tensor | Sequence[Tensor]) -> Tensor:
    """A list state as one tensor on the CPU: empty before the first batch, and whatever torchmetrics made of it between processes.

    >>> joined([]), joined([torch.tensor([1.0]), torch.tensor([2.0, 3.0])])
    (tensor([]), tensor([1., 2., 3.]))
    """
    if isinstance(state, Tensor):
        return state.cpu()
    return torch.cat(list(state)).cpu() if len(state) else torch.zeros(0)
