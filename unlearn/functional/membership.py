"""Membership inference: was this answer trained on? Scores per row, the area they give, and its distance to a retain model's.

Scores are like losses: low means "member". Unless told otherwise all tokens but ends of sequence count in Min-K; ``compat=True`` repeats
open-unlearning (github.com/locuslab/open-unlearning, commit d3d7cf9), which leaves out the last labelled token of each row whatever it is.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from unlearn.errors import DataError
from unlearn.functional.memorisation import scored
from unlearn.functional.scores import TokenScores
from unlearn.functional.tokens import row_count, row_mean

Array = np.ndarray[Any, np.dtype[Any]]

ATTACKS: tuple[str, ...] = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference")
"""Attacks that one teacher-forced pass feeds; ``gradnorm`` needs a backward pass (``unlearn.evaluation.gradnorm``)."""

VARIANCE_FLOOR = 1e-6
"""Least variance that Min-K%++ divides by, in nats squared: a position where the model is certain would give 0 / 0."""


def loss_score(scores: TokenScores) -> Tensor:
    """Mean negative log-likelihood of each row ``[n_rows]``, in nats (Yeom et al. 2018, arXiv 1709.01604); all labelled tokens count."""
    return scores.nll()


def zlib_score(scores: TokenScores) -> Tensor:
    """Loss over the length in bytes of the zlib-compressed answer ``[n_rows]`` (Carlini et al. 2021, arXiv 2012.07805).

    Raises:
        DataError: the scores came without texts.
    """
    if len(scores.texts) != scores.n_rows:
        raise DataError(f"the zlib attack needs the answer of each row as text; found {len(scores.texts)} texts for {scores.n_rows} rows.")
    loss_B = loss_score(scores)
    return loss_B / torch.tensor([len(zlib.compress(text.encode())) for text in scores.texts], dtype=loss_B.dtype, device=loss_B.device)


def lowest_mean(x_A: Tensor, row_A: Tensor, n_rows: int, k: float) -> Tensor:
    """Mean of the lowest share ``k`` of each row's values ``[n_rows]``: of ``floor(k n)``, at least one; nan for a row without values.

    Raises:
        DataError: ``k`` is not in (0, 1].

    >>> lowest_mean(torch.tensor([4.0, 1.0, 3.0, 7.0, 5.0]), torch.tensor([0, 0, 0, 0, 1]), 2, k=0.5)
    tensor([2., 5.])
    """
    if not 0 < k <= 1:
        raise DataError(f"k must be in (0, 1]; found {k}.")
    order_A = x_A.argsort(stable=True)
    order_A = order_A[row_A[order_A].argsort(stable=True)]
    row_A, count_B = row_A[order_A], row_count(row_A, n_rows)
    rank_A = torch.arange(len(row_A), device=row_A.device) - (count_B.cumsum(0) - count_B)[row_A]
    most_B = torch.tensor([max(1, int(n * k)) for n in count_B.tolist()], device=row_A.device)
    keep_A = rank_A < most_B[row_A]
    return row_mean(x_A[order_A][keep_A], row_A[keep_A], n_rows)


def min_k_score(scores: TokenScores, k: float = 0.4, eos_id: int | None = None, compat: bool = False) -> Tensor:
    """Min-K%: minus the mean of the lowest share ``k`` of log-probabilities ``[n_rows]``, in nats (Shi et al. 2024, arXiv 2310.16789).

    >>> from unlearn.functional.scores import token_scores
    >>> logits_AV = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    >>> min_k_score(token_scores(logits_AV, torch.tensor([0, 0]), torch.tensor([0, 0]), 1), k=0.5)
    tensor([1.3863])
    """
    keep_A = scored(scores.target_A, scores.row_A, eos_id, compat)
    return -lowest_mean(scores.logprob_A[keep_A], scores.row_A[keep_A], scores.n_rows, k)


def min_k_plus_plus_score(scores: TokenScores, k: float = 0.4, eos_id: int | None = None, compat: bool = False) -> Tensor:
    """Min-K%++ ``[n_rows]`` (Zhang et al. 2025, arXiv 2404.02936): Min-K% of log-probabilities standardised position by position.

    ``(log p - mu) / sigma`` with mu and sigma^2 the mean and variance of the log-probability of a token drawn from the model there
    (sigma^2 at least ``VARIANCE_FLOOR``). What RWKU's code calls ``mink20`` is this at k = 0.2, not Min-K%.

    >>> from unlearn.functional.scores import token_scores
    >>> logits_AV = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    >>> min_k_plus_plus_score(token_scores(logits_AV, torch.tensor([0, 0]), torch.tensor([0, 0]), 1), k=0.5)
    tensor([1.7321])
    """
    keep_A = scored(scores.target_A, scores.row_A, eos_id, compat)
    z_A = (scores.logprob_A - scores.mean_A) / scores.variance_A.clamp(min=VARIANCE_FLOOR).sqrt()
    return -lowest_mean(z_A[keep_A], scores.row_A[keep_A], scores.n_rows, k)


def reference_score(scores: TokenScores, reference_nll_B: Tensor) -> Tensor:
    """Loss minus the loss of a model that never saw the answers ``[n_rows]``, in nats (Carlini et al. 2021, arXiv 2012.07805).

    Raises:
        DataError: another number of reference losses than rows.
    """
    if reference_nll_B.shape != (scores.n_rows,):
        raise DataError(f"reference_nll_B must have one loss per row ({scores.n_rows}); found the shape {tuple(reference_nll_B.shape)}.")
    loss_B = loss_score(scores)
    return loss_B - reference_nll_B.to(loss_B)


def attack_score(
    scores: TokenScores,
    attack: str = "min_k",
    *,
    k: float = 0.4,
    reference_nll_B: Tensor | None = None,
    eos_id: int | None = None,
    compat: bool = False,
) -> Tensor:
    """Score of one of ``ATTACKS`` for each row ``[n_rows]``, low for a member.

    Raises:
        DataError: no such attack, or one that lacks texts or reference losses.
    """
    if attack == "loss":
        return loss_score(scores)
    if attack == "zlib":
        return zlib_score(scores)
    if attack == "min_k":
        return min_k_score(scores, k, eos_id, compat)
    if attack == "min_k_plus_plus":
        return min_k_plus_plus_score(scores, k, eos_id, compat)
    if attack != "reference":
        raise DataError(f"attack must be one of {', '.join(ATTACKS)}; found {attack!r}.")
    if reference_nll_B is None:
        raise DataError("the reference attack needs reference_nll_B, the losses of a model that never saw the answers; found none.")
    return reference_score(scores, reference_nll_B)


def attack_scores(
    scores: TokenScores, *, k: float = 0.4, reference_nll_B: Tensor | None = None, eos_id: int | None = None, compat: bool = False
) -> dict[str, Tensor]:
    """Every attack that these scores can feed: ``zlib`` where there are texts, ``reference`` where there are reference losses.

    >>> from unlearn.functional.scores import token_scores
    >>> logits_AV = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    >>> scores = token_scores(logits_AV, torch.tensor([0, 0]), torch.tensor([0, 0]), 1, texts=["a baker"])
    >>> {attack: round(float(value), 4) for attack, value in attack_scores(scores, k=1.0).items()}
    {'loss': 0.7458, 'zlib': 0.0497, 'min_k': 0.7458, 'min_k_plus_plus': 0.6994}
    """
    left_out = {"zlib": not scores.texts, "reference": reference_nll_B is None}
    return {
        attack: attack_score(scores, attack, k=k, reference_nll_B=reference_nll_B, eos_id=eos_id, compat=compat)
        for attack in ATTACKS
        if not left_out.get(attack)
    }


def _array(values: Sequence[float] | Array | Tensor) -> Array:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def membership_auc(forget_N: Sequence[float] | Array | Tensor, holdout_M: Sequence[float] | Array | Tensor) -> float:
    """Area under the ROC curve of an attack, in [0, 1]: the chance that a forget row scores lower than a holdout row, ties counted half.

    1: the forget rows are plainly memorised; 0.5: they look like rows never seen; below 0.5: they have become less likely than those,
    which gives them away as well. nan where a side is empty or a score is nan; infinite scores keep their rank.

    >>> round(membership_auc([0.1, 0.2, 0.9], [0.5, 1.0, 2.0]), 4)
    0.8889
    """
    forget_N, holdout_M = _array(forget_N), _array(holdout_M)
    both = np.concatenate([forget_N, holdout_M])
    if not len(forget_N) or not len(holdout_M) or np.isnan(both).any():
        return math.nan
    is_holdout = np.repeat([0, 1], [len(forget_N), len(holdout_M)])
    return float(roc_auc_score(is_holdout, np.nan_to_num(both)))


def rel_diff(value: float, reference: float) -> float:
    """Difference to a reference in percent of it: ``100 (value - reference) / reference``; nan where the reference is 0.

    >>> rel_diff(0.9, 0.5)
    80.0
    """
    return 100 * (value - reference) / reference if reference else math.nan


def privleak(auc: float, reference_auc: float = 0.5) -> float:
    """PrivLeak in percent (MUSE, arXiv 2407.06460, section 3): how far an attack's area is from that on a retain model.

    ``100 ((1 - auc) - (1 - reference)) / (1 - reference)`` with areas as ``membership_auc`` gives them. 0 is the goal; below 0 the forget
    rows still look like members, above 0 they look less likely than rows never seen. MUSE takes Min-K% with k = 0.4; 0.5 stands in for a
    retain model. nan where the reference is 1.

    >>> round(privleak(0.9), 4), round(privleak(0.31, 0.48), 4)
    (-80.0, 32.6923)
    """
    return rel_diff(1 - auc, 1 - reference_auc)
