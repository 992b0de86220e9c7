"""How much of the answers a model still holds: teacher-forced scores per row.

``compat=True`` repeats the definitions of open-unlearning (github.com/locuslab/open-unlearning, commit d3d7cf9), which differ on purpose
from ours: there the last labelled token is left out even when it is no end-of-sequence token, and extraction strength never gets to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlearn.errors import DataError, did_you_mean
from unlearn.functional.tokens import row_count, row_mean

TRUTH_RATIO_SCORES: tuple[str, ...] = ("forget", "utility", "probability")
"""Readings of a truth ratio that ``truth_ratio_score`` knows."""


def probability(nll_A: Tensor, row_A: Tensor, n_rows: int) -> Tensor:
    """``exp(-mean nll)`` of each row ``[n_rows]``: the answer's probability per token, in [0, 1] (TOFU, arXiv 2401.06121, section 2.2).

    All labelled tokens count, the end-of-sequence token among them. nan for a row without labels.

    >>> probability(torch.tensor([0.0, 1.3863, 0.6931]), torch.tensor([0, 0, 1]), 2)
    tensor([0.5000, 0.5000])
    """
    return (-row_mean(nll_A, row_A, n_rows)).exp()


def scored(targets_A: Tensor, row_A: Tensor, eos_id: int | None = None, compat: bool = False) -> Tensor:
    """Which answer tokens are scored ``[A]``, booleans: all but ends of sequence, or (``compat``) all but the last of each row.

    >>> scored(torch.tensor([5, 6, 2, 7]), torch.tensor([0, 0, 0, 1]), eos_id=2)
    tensor([ True,  True, False,  True])
    >>> scored(torch.tensor([5, 6, 2, 7]), torch.tensor([0, 0, 0, 1]), compat=True)
    tensor([ True,  True, False, False])
    """
    if compat:
        keep_A = torch.zeros_like(row_A, dtype=torch.bool)
        keep_A[:-1] = row_A[:-1] == row_A[1:]
        return keep_A
    return torch.ones_like(row_A, dtype=torch.bool) if eos_id is None else targets_A != eos_id


def hit_share(hit_A: Tensor, row_A: Tensor, n_rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Share of hits of each row ``[n_rows]``, in [0, 1]; nan for a row without tokens.

    >>> hit_share(torch.tensor([True, True, False, True]), torch.tensor([0, 0, 0, 0]), 1)
    tensor([0.7500])
    """
    return row_mean(hit_A.to(dtype), row_A, n_rows)


def suffix_share(hit_A: Tensor, row_A: Tensor, n_rows: int, dtype: torch.dtype = torch.float32, at_least_one: bool = False) -> Tensor:
    """Length of the longest unbroken run of hits that ends a row, over the row's length: ``[n_rows]``, in [0, 1]; nan for an empty row.

    ``at_least_one`` counts the last token as a hit.

    >>> suffix_share(torch.tensor([True, False, True, True]), torch.tensor([0, 0, 0, 0]), 1)
    tensor([0.5000])
    """
    count_B = row_count(row_A, n_rows)
    index_A = torch.arange(len(row_A), device=row_A.device)
    end_B = count_B.cumsum(0)
    last_miss_B = (end_B - count_B - 1).scatter_reduce(0, row_A, index_A.masked_fill(hit_A, -1), "amax")
    suffix_B = end_B - 1 - last_miss_B
    if at_least_one:
        suffix_B = suffix_B.clamp(min=1)
    return (suffix_B.to(dtype) / count_B).masked_fill(count_B == 0, torch.nan)


def _hits(logits_AV: Tensor, targets_A: Tensor, row_A: Tensor, keep_A: Tensor) -> tuple[Tensor, Tensor]:
    """(hit_A, row_A) of the tokens that are kept."""
    return (logits_AV.argmax(-1) == targets_A)[keep_A], row_A[keep_A]


def exact_memorisation(
    logits_AV: Tensor, targets_A: Tensor, row_A: Tensor, n_rows: int, eos_id: int | None = None, compat: bool = False
) -> Tensor:
    """Share of answer tokens that are the model's first choice, teacher-forced: ``[n_rows]``, in [0, 1].

    Args:
        logits_AV: logits that predict the targets, row after row.
        targets_A: labelled tokens.
        row_A: row of each token, ascending.
        n_rows: rows of the batch.
        eos_id: tokens of this id are not scored (the end of an answer says nothing about what is remembered).
        compat: leave out the last token of each row instead, whatever it is.

    nan for a row without scored tokens.

    >>> logits_AV = torch.eye(3)[[0, 1, 2, 0]]
    >>> exact_memorisation(logits_AV, torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 0, 0]), 1)
    tensor([0.7500])
    """
    hit_A, row_A = _hits(logits_AV, targets_A, row_A, scored(targets_A, row_A, eos_id, compat))
    return hit_share(hit_A, row_A, n_rows, torch.promote_types(logits_AV.dtype, torch.float32))


def extraction_strength(
    logits_AV: Tensor, targets_A: Tensor, row_A: Tensor, n_rows: int, eos_id: int | None = None, compat: bool = False
) -> Tensor:
    """Share of the answer that need not be given for the model to complete the rest: ``[n_rows]``, in [0, 1].

    ``1 - k / n`` with k the length of the shortest given prefix after which every token is the model's first choice, teacher-forced, and n
    the number of scored tokens (Carlini et al. 2021 as used by open-unlearning). 0 when the last token is wrong; with ``compat`` at
    least ``1 / n``. Arguments as in ``exact_memorisation``; nan for a row without scored tokens.

    >>> logits_AV = torch.eye(3)[[0, 1, 2, 0]]
    >>> extraction_strength(logits_AV, torch.tensor([0, 0, 2, 0]), torch.tensor([0, 0, 0, 0]), 1)
    tensor([0.5000])
    >>> extraction_strength(logits_AV, torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 0, 0]), 1)
    tensor([0.])
    """
    hit_A, row_A = _hits(logits_AV, targets_A, row_A, scored(targets_A, row_A, eos_id, compat))
    return suffix_share(hit_A, row_A, n_rows, torch.promote_types(logits_AV.dtype, torch.float32), at_least_one=compat)


def truth_ratio(paraphrase_nll_B: Tensor, perturbed_nll_BK: Tensor) -> Tensor:
    """Probability of wrong answers over that of the right one ``[B]``, >= 0 (TOFU, arXiv 2401.06121, section 2.2).

    ``exp(-mean_k wrong nll) / exp(-paraphrase nll)``, each nll a mean over tokens. So wrong answers are averaged geometrically, as
    open-unlearning does (the paper's formula averages their probabilities). Above 1 the model prefers the wrong answers. Where rows have
    unlike numbers of wrong answers, fill up with nan.

    >>> truth_ratio(torch.tensor([1.0]), torch.tensor([[2.0, 3.0, torch.nan]]))
    tensor([0.2231])
    """
    return (paraphrase_nll_B - perturbed_nll_BK.nanmean(-1)).exp()


def truth_ratio_score(ratio_B: Tensor, score: str = "forget") -> Tensor:
    """One reading of truth ratios per row ``[B]``, in [0, 1]; average it over rows.

    ``forget``: ``min(r, 1/r)``, 1 when wrong and right answers are equally likely. ``utility``: ``max(0, 1 - r)``, near 1 when the right
    answer is preferred. ``probability``: ``1 / (1 + r)``, the right answer's share of the two. open-unlearning calls them
    closer_to_1_better, true_better and prob_mean.

    Raises:
        DataError: ``score`` is none of these.

    >>> ratio_B = torch.tensor([0.5, 4.0])
    >>> truth_ratio_score(ratio_B, "forget"), truth_ratio_score(ratio_B, "utility"), truth_ratio_score(ratio_B, "probability")
    (tensor([0.5000, 0.2500]), tensor([0.5000, 0.0000]), tensor([0.6667, 0.2000]))
    """
    if score not in TRUTH_RATIO_SCORES:
        hint = did_you_mean(score, TRUTH_RATIO_SCORES)
        raise DataError(f"score must be one of {', '.join(TRUTH_RATIO_SCORES)}; found {score!r}.{hint}")
    if score == "forget":
        return torch.minimum(ratio_B, 1 / ratio_B)
    return (1 - ratio_B).clamp(min=0) if score == "utility" else 1 / (1 + ratio_B)


def option_probability(right_nll_B: Tensor, wrong_nll_BK: Tensor) -> Tensor:
    """Probability of the right answer among the options ``[B]``, in [0, 1] (TOFU's probability for real authors and world facts).

    ``p / (p + sum_k p_k)`` with ``p = exp(-mean nll)``. Missing options are nan.

    >>> option_probability(torch.tensor([0.6931]), torch.tensor([[1.3863, 1.3863]]))
    tensor([0.5000])
    """
    right_B = (-right_nll_B).exp()
    return right_B / (right_B + (-wrong_nll_BK).exp().nansum(-1))
