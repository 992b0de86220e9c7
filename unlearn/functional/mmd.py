"""Maximum mean discrepancy: how far two samples are from having been drawn from one distribution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unlearn.errors import DataError
from unlearn.functional.tokens import upcast

WIDTHS: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
"""Kernel widths, in units of the number of features."""


def gaussian_kernel(x_NS: Tensor, y_MS: Tensor, widths: Sequence[float] = WIDTHS) -> Tensor:
    """Sum over ``widths`` of ``exp(-|x - y|^2 / (2 w S))``: ``[N, M]``, in [0, len(widths)]; float32 at least, differentiable.

    S is the number of features: between two standardised points ``|x - y|^2`` is about 2 S, so the widths need no tuning by data.

    >>> import torch
    >>> gaussian_kernel(torch.zeros(1, 2), torch.ones(1, 2), widths=(0.5,))
    tensor([[0.3679]])
    """
    x_NS, y_MS = upcast(x_NS), upcast(y_MS)
    centre_S = y_MS.detach().mean(0)
    x_NS, y_MS = x_NS - centre_S, y_MS - centre_S
    squared_NM = (x_NS.square().sum(1)[:, None] + y_MS.square().sum(1) - 2 * x_NS @ y_MS.T).clamp(min=0)
    scaled_NM = squared_NM / (-2 * x_NS.shape[1])
    first, *rest = [(scaled_NM / width).exp() for width in widths]
    return sum(rest, first)


def mmd2(x_NS: Tensor, y_MS: Tensor, widths: Sequence[float] = WIDTHS, unbiased: bool = False) -> Tensor:
    """Squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13, lemma 6), summed over ``widths``; a scalar, differentiable.

    ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` with ``gaussian_kernel``. Standardise the features first.

    Args:
        x_NS: one sample.
        y_MS: the other sample.
        widths: kernel widths, in units of the number of features, > 0.
        unbiased: leave out the pairs of a point with itself; the value averages 0 for equal distributions and may be negative.

    Raises:
        DataError: a sample is empty, or has one row with ``unbiased``.

    >>> import torch
    >>> mmd2(torch.zeros(3, 2), torch.ones(3, 2), widths=(0.5,))
    tensor(1.2642)
    """
    least = 2 if unbiased else 1
    if min(len(x_NS), len(y_MS)) < least:
        raise DataError(f"mmd2 must be given at least {least} rows on each side; found {len(x_NS)} and {len(y_MS)}.")
    return _within(x_NS, widths, unbiased) + _within(y_MS, widths, unbiased) - 2 * gaussian_kernel(x_NS, y_MS, widths).mean()


def _within(x_NS: Tensor, widths: Sequence[float], unbiased: bool) -> Tensor:
    kernel_NN = gaussian_kernel(x_NS, x_NS, widths)
    if not unbiased:
        return kernel_NN.mean()
    n = len(x_NS)
    return (kernel_NN.sum() - kernel_NN.diagonal().sum()) / (n * (n - 1))
