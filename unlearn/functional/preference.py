"""Preference arithmetic: log-probabilities of whole answers, and the logistic loss that sets them against each other.

Rows are N answers. NPO and DPO compare *sums* of token log-probabilities, SimNPO means: one beta does not mean the same in both.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from unlearn.functional.tokens import row_sum


def sequence_logprob(nll_A: Tensor, row_A: Tensor, n_rows: int) -> Tensor:
    """``sum_t log p(y_t)`` of each answer ``[n_rows]``, in nats, <= 0; 0 for a row without tokens.

    Args:
        nll_A: negative log-likelihood of each answer token.
        row_A: the row each token belongs to.
        n_rows: number of rows.

    >>> import torch
    >>> sequence_logprob(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 1]), 2)
    tensor([-3., -6.])
    """
    return -row_sum(nll_A, row_A, n_rows)


def preference_loss(lead_N: Tensor, beta: float) -> Tensor:
    """``-(2 / beta) * log sigmoid(beta * lead)`` of each row ``[N]``, > 0.

    ``lead`` is by how much (in nats) the model prefers what it should prefer. The gradient with respect to it, ``-2 sigmoid(-beta lead)``,
    is -1 where there is no lead and dies out as the lead grows. As beta goes to 0 it is -1 everywhere: gradient ascent.

    Args:
        lead_N: the lead of each row, in nats.
        beta: inverse temperature, > 0.

    >>> import torch
    >>> preference_loss(torch.tensor([0.0, 1.0]), beta=1.0)
    tensor([1.3863, 0.6265])
    """
    return -(2.0 / beta) * logsigmoid(beta * lead_N)
