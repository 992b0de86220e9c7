from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from unlearn.errors import DataError
from unlearn.functional.mmd import WIDTHS, gaussian_kernel, mmd2

RNG = np.random.default_rng(0)
X_NS, Y_MS = RNG.normal(size=(9, 5)), RNG.normal(loc=0.7, size=(6, 5))


def reference(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    total = 0.0
    for width in WIDTHS:
        gamma = 1 / (2 * width * x.shape[1])
        parts = []
        for sample in (x, y):
            kernel, n = rbf_kernel(sample, gamma=gamma), len(sample)
            parts.append((kernel.sum() - n) / (n * (n - 1)) if unbiased else kernel.mean())
        total += sum(parts) - 2 * rbf_kernel(x, y, gamma=gamma).mean()
    return total


@pytest.mark.parametrize("unbiased", [False, True])
def test_equals_scikit_learn_kernels(unbiased: bool) -> None:
    value = mmd2(torch.from_numpy(X_NS), torch.from_numpy(Y_MS), unbiased=unbiased)
    assert value.item() == pytest.approx(reference(X_NS, Y_MS, unbiased), abs=1e-12)


def test_far_from_the_origin_float32_still_agrees() -> None:
    x, y = torch.from_numpy(X_NS + 1000).float(), torch.from_numpy(Y_MS + 1000).float()
    assert mmd2(x, y).item() == pytest.approx(reference(X_NS, Y_MS, False), abs=1e-3)


def test_zero_for_equal_samples_and_grows_with_the_shift() -> None:
    x = torch.from_numpy(X_NS)
    values = [mmd2(x, x + shift).item() for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values[0] == pytest.approx(0.0, abs=1e-12)
    assert values == sorted(values)


def test_unbiased_averages_zero_under_the_null_and_biased_does_not() -> None:
    rng = np.random.default_rng(1)
    pairs = [(torch.from_numpy(rng.normal(size=(8, 4))), torch.from_numpy(rng.normal(size=(8, 4)))) for _ in range(300)]
    unbiased = np.array([mmd2(x, y, unbiased=True).item() for x, y in pairs])
    assert abs(unbiased.mean()) < 3 * unbiased.std() / np.sqrt(300)
    assert all(mmd2(x, y).item() > 0 for x, y in pairs)


def test_gradient_moves_the_samples_together() -> None:
    y = torch.from_numpy(Y_MS)
    assert torch.autograd.gradcheck(lambda x: mmd2(x, y), (torch.from_numpy(X_NS).requires_grad_(),))
    x = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    mmd2(x, y).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert mmd2(x.detach() - x.grad, y) < mmd2(x.detach(), y)


def test_half_precision_is_raised() -> None:
    kernel = gaussian_kernel(torch.zeros(2, 3, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bfloat16))
    assert kernel.dtype == torch.float32


def test_too_few_rows_are_named() -> None:
    with pytest.raises(DataError, match="at least 2 rows on each side; found 1 and 6"):
        mmd2(torch.zeros(1, 5), torch.zeros(6, 5), unbiased=True)
    with pytest.raises(DataError, match="at least 1 rows on each side; found 3 and 0"):
        mmd2(torch.zeros(3, 5), torch.zeros(0, 5))
