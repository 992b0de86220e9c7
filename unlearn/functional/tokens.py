"""Answer tokens laid end to end, and their likelihood.

A causal model's logits at position t predict the token at t + 1. Labels are aligned with the tokens (``unlearn.types.TokenBatch``), so the
one shift of the package happens here. Shape suffixes are those of ``unlearn.types``; A counts the labelled tokens of a batch, row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.errors import DataError
from unlearn.types import IGNORE_INDEX


def upcast(x: Tensor) -> Tensor:
    """``x`` in float32, or unchanged where it is float32 or float64 already."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def answer_positions(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where the logits stand that predict the labelled tokens.

    Args:
        labels_BT: token ids, ``IGNORE_INDEX`` on positions without a loss. A label at index 0 is ignored: nothing predicts it.

    Returns:
        ``(row_A, pos_A)``: row of the batch, and index of the label minus one; rows ascend, positions ascend within a row.

    >>> answer_positions(torch.tensor([[-100, -100, 7, 8], [-100, 9, -100, -100]]))
    (tensor([0, 0, 1]), tensor([1, 2, 0]))
    """
    row_A, pos_A = torch.nonzero(labels_BT[:, 1:] != IGNORE_INDEX, as_tuple=True)
    return row_A, pos_A


def answer_targets(labels_BT: Tensor) -> Tensor:
    """Labelled tokens ``[A]``, in the order of ``answer_positions``.

    >>> answer_targets(torch.tensor([[-100, -100, 7, 8], [-100, 9, -100, -100]]))
    tensor([7, 8, 9])
    """
    shifted = labels_BT[:, 1:]
    return shifted[shifted != IGNORE_INDEX]


def answer_logits(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(logits_AV, targets_A, row_A)`` of a full forward pass.

    >>> logits_AV, targets_A, row_A = answer_logits(torch.zeros(1, 3, 5), torch.tensor([[-100, 2, 4]]))
    >>> logits_AV.shape, targets_A, row_A
    (torch.Size([2, 5]), tensor([2, 4]), tensor([0, 0]))
    """
    row_A, pos_A = answer_positions(labels_BT)
    return logits_BTV[row_A, pos_A], answer_targets(labels_BT), row_A


def token_nll(logits_AV: Tensor, targets_A: Tensor) -> Tensor:
    """Negative log-likelihood of each answer token ``[A]``, in nats, >= 0; float32 at least.

    >>> token_nll(torch.zeros(1, 4), torch.tensor([2]))
    tensor([1.3863])
    """
    return F.cross_entropy(upcast(logits_AV), targets_A, reduction="none")


def token_mean(nll_A: Tensor) -> Tensor:
    """Mean over all answer tokens of the batch: the language-model loss. nan when there is none.

    >>> token_mean(torch.tensor([1.0, 2.0, 6.0]))
    tensor(3.)
    """
    return nll_A.mean()


def row_sum(x_A: Tensor, row_A: Tensor, n_rows: int) -> Tensor:
    """Sum per row ``[n_rows]``; 0 for a row without tokens.

    >>> row_sum(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 2]), 3)
    tensor([3., 0., 6.])
    """
    return x_A.new_zeros(n_rows).index_add(0, row_A, x_A)


def row_count(row_A: Tensor, n_rows: int) -> Tensor:
    """Tokens per row ``[n_rows]``, integers.

    >>> row_count(torch.tensor([0, 0, 2]), 3)
    tensor([2, 0, 1])
    """
    return torch.bincount(row_A, minlength=n_rows)


def row_mean(x_A: Tensor, row_A: Tensor, n_rows: int) -> Tensor:
    """Mean per row ``[n_rows]``; nan for a row without tokens.

    >>> row_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 2]), 3)
    tensor([1.5000,    nan, 6.0000])
    """
    return row_sum(x_A, row_A, n_rows) / row_count(row_A, n_rows)


def gather_positions(hidden_BTD: Tensor, pos_B: Tensor) -> Tensor:
    """One position of each row: ``[B, D]``.

    Raises:
        DataError: a position is negative (``NO_ENTITY``) or past the end.

    >>> gather_positions(torch.arange(6.0).view(2, 3, 1), torch.tensor([2, 0]))
    tensor([[2.],
            [3.]])
    """
    wrong = (pos_B < 0) | (pos_B >= hidden_BTD.shape[1])
    if bool(wrong.any()):
        found = pos_B[wrong][0].item()
        raise DataError(f"pos_B must be in [0, {hidden_BTD.shape[1]}), so leave out rows without an entity; found {found}.")
    return hidden_BTD[torch.arange(len(pos_B), device=hidden_BTD.device), pos_B]
