from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unlearn.functional.distance import SCALE_FLOOR, contrastive, prototype_margin, push_pull, standardised_distance, triplet

RNG = torch.Generator().manual_seed(0)
X_NS = torch.randn(5, 4, generator=RNG, dtype=torch.float64)
UNKNOWN_S, KNOWN_S = torch.randn(2, 4, generator=RNG, dtype=torch.float64)
SCALE_S = torch.rand(4, generator=RNG, dtype=torch.float64) + 0.5


def by_hand(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return np.array([np.mean([((a - m) / s) ** 2 for a, m, s in zip(row, mean, SCALE_S.numpy(), strict=True)]) for row in x])


def test_distance_matches_a_loop() -> None:
    expected = by_hand(X_NS.numpy(), KNOWN_S.numpy())
    assert standardised_distance(X_NS, KNOWN_S, SCALE_S).tolist() == pytest.approx(expected.tolist())
    paired = standardised_distance(X_NS, X_NS + SCALE_S, SCALE_S)
    assert paired.tolist() == pytest.approx([1.0] * 5)


def test_latents_that_never_move_do_not_blow_up() -> None:
    distance = standardised_distance(torch.tensor([[SCALE_FLOOR]]), torch.zeros(1), torch.zeros(1))
    assert distance.item() == pytest.approx(1.0)


def test_push_pull_matches_its_formula() -> None:
    pull, away = by_hand(X_NS.numpy(), UNKNOWN_S.numpy()), by_hand(X_NS.numpy(), KNOWN_S.numpy())
    margin = by_hand(UNKNOWN_S[None].numpy(), KNOWN_S.numpy())[0]
    expected = pull + 0.3 * np.maximum(0, margin - away)
    assert push_pull(X_NS, UNKNOWN_S, KNOWN_S, SCALE_S, weight=0.3).tolist() == pytest.approx(expected.tolist())
    assert prototype_margin(UNKNOWN_S, KNOWN_S, SCALE_S).item() == pytest.approx(margin)
    wide = push_pull(X_NS, UNKNOWN_S, KNOWN_S, SCALE_S, weight=0.3, margin=100.0)
    assert wide.tolist() == pytest.approx((pull + 0.3 * (100 - away)).tolist())
    unbounded = push_pull(X_NS, UNKNOWN_S, KNOWN_S, SCALE_S, weight=0.3, bounded=False)
    assert unbounded.tolist() == pytest.approx((pull - 0.3 * away).tolist())


def test_push_ends_at_the_margin_and_the_minimum_is_the_unknown_prototype() -> None:
    x = X_NS.clone().requires_grad_()
    optimiser = torch.optim.SGD([x], lr=0.2)
    for _ in range(400):
        optimiser.zero_grad()
        push_pull(x, UNKNOWN_S, KNOWN_S, SCALE_S).sum().backward()
        optimiser.step()
    torch.testing.assert_close(x.detach(), UNKNOWN_S.expand_as(x), atol=0.05, rtol=0)


def test_unbounded_push_beyond_weight_one_has_no_minimum() -> None:
    far = push_pull(1e3 * X_NS, UNKNOWN_S, KNOWN_S, SCALE_S, weight=2.0, bounded=False)
    assert (far < -1e3).all()
    assert (push_pull(1e3 * X_NS, UNKNOWN_S, KNOWN_S, SCALE_S, weight=2.0) >= 0).all()


def test_triplet_limits_itself() -> None:
    x = torch.stack([KNOWN_S, UNKNOWN_S, 2 * UNKNOWN_S - KNOWN_S]).requires_grad_()
    margin = prototype_margin(UNKNOWN_S, KNOWN_S, SCALE_S).item()
    loss = triplet(x, UNKNOWN_S, KNOWN_S, SCALE_S)
    assert loss.tolist() == pytest.approx([2 * margin, 0.0, 0.0], abs=1e-9)
    loss.sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().sum() > 0
    assert x.grad[2].abs().sum() == 0
    assert triplet(x.detach(), UNKNOWN_S, KNOWN_S, SCALE_S, margin=0.0)[0].item() == pytest.approx(margin)


def test_contrastive_is_cross_entropy_over_the_banks() -> None:
    unknown, known = torch.randn(3, 4, generator=RNG, dtype=torch.float64), torch.randn(3, 4, generator=RNG, dtype=torch.float64)
    scores = F.cosine_similarity(X_NS[:, None], torch.cat([unknown, known])[None], dim=-1) / 0.2
    expected = -scores.softmax(-1)[:, :3].sum(-1).log()
    torch.testing.assert_close(contrastive(X_NS, unknown, known, temperature=0.2), expected)
    assert (contrastive(unknown, unknown, known) < contrastive(known, unknown, known)).all()


def test_gradients_and_precision() -> None:
    x = X_NS.clone().requires_grad_()
    for loss in (push_pull, triplet):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, UNKNOWN_S, KNOWN_S, SCALE_S), (x,))
    half = standardised_distance(X_NS.bfloat16(), UNKNOWN_S.float(), SCALE_S.float())
    assert half.dtype == torch.float32
