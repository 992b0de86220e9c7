"""Distances to known and unknown prototypes, and the losses built on them.

x is an activation of a target entity, ``unknown_S`` and ``known_S`` are the means of the frozen model's banks, ``scale_S`` the standard
deviation per feature over both banks. All functions return one value per row, in float32 at least, and are differentiable in x.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.functional.tokens import upcast

SCALE_FLOOR = 1e-3
"""Least standard deviation used for scaling: a latent that hardly ever moves must not dominate."""


def standardised_distance(x_NS: Tensor, mean_S: Tensor, scale_S: Tensor) -> Tensor:
    """Mean over features of ``((x - mean) / scale)^2``: ``[N]``, >= 0; scales below ``SCALE_FLOOR`` are raised to it.

    ``mean_S`` may be ``[N, S]``: then each row has its own point to go to (sample matching).

    >>> standardised_distance(torch.tensor([[3.0, 1.0]]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]))
    tensor([0.5000])
    """
    return ((upcast(x_NS) - mean_S) / scale_S.clamp(min=SCALE_FLOOR)).square().mean(-1)


def prototype_margin(unknown_S: Tensor, known_S: Tensor, scale_S: Tensor) -> Tensor:
    """Distance between the two prototypes: the default margin.

    >>> prototype_margin(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([1.0]))
    tensor(4.)
    """
    return standardised_distance(unknown_S[None], known_S, scale_S)[0]


def push_pull(
    x_NS: Tensor,
    unknown_S: Tensor,
    known_S: Tensor,
    scale_S: Tensor,
    weight: float = 0.5,
    margin: Tensor | float | None = None,
    bounded: bool = True,
) -> Tensor:
    """Pull to the unknown prototype, push from the known one: ``D(x, unknown) + weight relu(margin - D(x, known))``, ``[N]``.

    The closest reading of Yamashita et al. (arXiv 2509.15631, abstract), with D = ``standardised_distance``.

    Args:
        x_NS: activations to move.
        unknown_S: mean of the unknown bank.
        known_S: mean of the known bank.
        scale_S: standard deviation per feature.
        weight: weight of the push, >= 0.
        margin: distance from the known prototype at which pushing stops; None takes ``prototype_margin``.
        bounded: with False the push is ``-weight D(x, known)`` and never stops (the ablation that collapses).

    >>> zero, two = torch.zeros(1), torch.tensor([2.0])
    >>> push_pull(torch.tensor([[0.0], [1.0], [2.0]]), zero, two, torch.ones(1), weight=0.5)
    tensor([0.0000, 2.5000, 6.0000])
    """
    pull_N, away_N = standardised_distance(x_NS, unknown_S, scale_S), standardised_distance(x_NS, known_S, scale_S)
    if not bounded:
        return pull_N - weight * away_N
    margin = prototype_margin(unknown_S, known_S, scale_S) if margin is None else margin
    return pull_N + weight * F.relu(margin - away_N)


def triplet(x_NS: Tensor, unknown_S: Tensor, known_S: Tensor, scale_S: Tensor, margin: Tensor | float | None = None) -> Tensor:
    """Nearer to unknown than to known by ``margin``: ``relu(margin + D(x, unknown) - D(x, known))``, ``[N]``, >= 0.

    Limits itself: no gradient once the margin is met. None takes ``prototype_margin``, which the unknown prototype just meets.

    >>> zero, two = torch.zeros(1), torch.tensor([2.0])
    >>> triplet(torch.tensor([[0.0], [1.0], [2.0]]), zero, two, torch.ones(1))
    tensor([0., 4., 8.])
    """
    margin = prototype_margin(unknown_S, known_S, scale_S) if margin is None else margin
    return F.relu(margin + standardised_distance(x_NS, unknown_S, scale_S) - standardised_distance(x_NS, known_S, scale_S))


def contrastive(x_NS: Tensor, unknown_MS: Tensor, known_KS: Tensor, temperature: float = 0.1) -> Tensor:
    """``-log [ sum_u e^(cos(x, u) / t) / (sum_u e^(cos(x, u) / t) + sum_k e^(cos(x, k) / t)) ]``: ``[N]``, > 0.

    u runs over the unknown bank, k over the known one; give banks of equal size. ``temperature`` > 0.

    >>> contrastive(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]), temperature=1.0)
    tensor([0.3133])
    """
    bank = F.normalize(torch.cat([upcast(unknown_MS), upcast(known_KS)]), dim=-1)
    scores = F.normalize(upcast(x_NS), dim=-1) @ bank.T / temperature
    return scores.logsumexp(-1) - scores[:, : len(unknown_MS)].logsumexp(-1)
