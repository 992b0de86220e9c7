from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import scipy.stats
import torch

from unlearn.functional import erasure
from unlearn.functional.erasure import (
    excess,
    log_share,
    negative_entropy,
    quantile_distance,
    relative_change,
    standing,
    virtual_codes,
    without_interaction,
)


def test_doctests() -> None:
    assert doctest.testmod(erasure).failed == 0


def test_what_a_pair_has_of_its_own_is_left_out() -> None:
    """Codes f(a, b) = u(a) + v(b) + w(a, b), w being 0 but for the known pair (0, 0)."""
    u, v, w = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), torch.randn(2, 5), torch.randn(5)

    def code(a: int, b: int) -> torch.Tensor:
        return u[a] + v[b] + (w if (a, b) == (0, 0) else 0)

    torch.testing.assert_close(without_interaction(code(1, 0), code(0, 1), code(1, 1)), code(0, 0) - w)


def test_relative_change_is_the_mean_squared_error_in_units_of_the_variance() -> None:
    x, y = torch.randn(40, 6), 3 * torch.randn(40, 6) + 1
    expected = ((x - y) ** 2).numpy().mean() / y.numpy().var(0, ddof=1).mean()
    assert relative_change(x, y).item() == pytest.approx(expected, rel=1e-5)
    assert relative_change(y, y).item() == 0
    assert relative_change(x[:0], y[:0]).item() == 0
    assert math.isfinite(relative_change(x[:1], y[:1]).item())


def test_log_share_is_the_conditional_likelihood_against_chance() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, 50.0], [0.0, 0.0, 7.0, 1.0]])
    choices = torch.tensor([[True, True, True, False], [True, True, False, False]])
    p = scipy.special.softmax([2.0, 1.0, 0.0])[0]
    found = log_share(logits, torch.tensor([0, 1]), choices)
    assert found.tolist() == pytest.approx([math.log(3 * p), 0.0], abs=1e-6)
    assert log_share(logits.bfloat16(), torch.tensor([0, 1]), choices).dtype == torch.float32
    logits.requires_grad_(True)
    log_share(logits, torch.tensor([0, 1]), choices).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[~choices] == 0).all()


def test_quantile_distance_is_wasserstein_where_values_are_far_apart() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(20, 1, 30), rng.normal(0, 3, 30)
    far = quantile_distance(torch.tensor(x), torch.tensor(y))
    assert far.item() == pytest.approx(scipy.stats.wasserstein_distance(x, y) - 0.5, rel=1e-9)
    fine = quantile_distance(torch.tensor(x), torch.tensor(y) + 20, slack=1e-9)
    assert fine.item() == pytest.approx(scipy.stats.wasserstein_distance(x, y + 20), rel=1e-6)


def test_quantile_distance_pulls_from_both_sides_and_leaves_the_spread() -> None:
    wanted = torch.tensor([-1.0, 0.0, 1.0])
    for start in (-4.0, 4.0):
        x = torch.full((3,), start, requires_grad=True)
        quantile_distance(x, wanted).backward()
        assert (torch.sign(x.grad) == math.copysign(1, start)).all()
    assert quantile_distance(wanted.flip(0), wanted).item() == 0
    assert quantile_distance(torch.zeros(3), wanted).item() > 0
    assert quantile_distance(wanted[:0], wanted[:0]).item() == 0


def test_quantile_distance_within_kinds_is_the_mean_of_the_kinds_weighted_by_their_size() -> None:
    rng = np.random.default_rng(1)
    x, y, kind = rng.normal(0, 3, 12), rng.normal(1, 2, 12), np.array([2, 0, 1, 2, 2, 0, 1, 1, 2, 2, 0, 2])
    within = quantile_distance(torch.tensor(x), torch.tensor(y), torch.tensor(kind), slack=1e-9)
    parts = [(kind == k).mean() * scipy.stats.wasserstein_distance(x[kind == k], y[kind == k]) for k in range(3)]
    assert within.item() == pytest.approx(sum(parts), rel=1e-6)
    crossed, wanted, two = torch.tensor([-2.0, -2.0, 2.0, 2.0]), torch.tensor([2.0, 2.0, -2.0, -2.0]), torch.tensor([0, 0, 1, 1])
    assert quantile_distance(crossed, wanted).item() == 0, "one kind too low makes up for the other too high"
    assert quantile_distance(crossed, wanted, two).item() == pytest.approx(3.5)


def test_the_cap_works_from_one_side_only() -> None:
    x = torch.tensor([-9.0, 0.5, 2.0], requires_grad=True)
    excess(x, 0.5).backward()
    assert x.grad.tolist() == pytest.approx([0, 0, 1 / 3])


def test_negative_entropy_is_scipy_s() -> None:
    logits = torch.randn(7, 11, dtype=torch.float64)
    expected = -scipy.stats.entropy(scipy.special.softmax(logits.numpy(), 1), axis=1)
    assert negative_entropy(logits).numpy() == pytest.approx(expected)


def test_virtual_codes_have_the_mean_and_covariance_of_the_known() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(50, 3, generator=generator) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.3]]) + 5
    weights = torch.randn(200_000, 50, generator=generator) / 50**0.5
    made = virtual_codes(known, weights, 1.3)
    torch.testing.assert_close(made.mean(0), known.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(made.T), 1.3**2 * torch.cov(known.T, correction=0), atol=0.1, rtol=0.03)


def test_a_standing_is_the_z_score_among_the_classes_that_a_row_has() -> None:
    generator = torch.Generator().manual_seed(0)
    score_NV, has_NV = torch.randn(4, 6, generator=generator, requires_grad=True), torch.rand(4, 6, generator=generator) < 0.6
    class_N = torch.tensor([2, 0, 5, 1])
    has_NV[torch.arange(4), class_N] = True
    has_NV[:, 3] = True
    found_N = standing(score_NV, class_N, has_NV)
    for n in range(4):
        own = score_NV.detach()[n][has_NV[n]].double().numpy()
        at = int(has_NV[n, : class_N[n]].sum())
        assert found_N[n].item() == pytest.approx(scipy.stats.zscore(own)[at], abs=1e-5)
    gradient_NV = torch.autograd.grad(found_N.sum(), score_NV)[0]
    assert not gradient_NV[~has_NV].any()
    equal = standing(torch.ones(1, 3), torch.tensor([0]), torch.ones(1, 3, dtype=torch.bool))
    assert equal.item() == 0.0
