"""What one teacher-forced pass tells about each answer token, kept small: every metric of likelihood is made from it.

A pass over a set of rows leaves a handful of numbers per token instead of logits over the vocabulary, so one forward per batch serves
probability, exact memorisation, extraction strength and all membership attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.errors import DataError
from unlearn.functional.memorisation import hit_share, scored, suffix_share
from unlearn.functional.tokens import row_mean, upcast

CHUNK = 256
"""Most tokens whose log-probabilities over the vocabulary are held in memory at once."""

IMPOSSIBLE = -1e4
"""Log-probability in nats at which the probability is 0 in every number format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Answer tokens of ``n_rows`` rows laid end to end, as a model that reads the right answer sees them.

    ``logprob_A``: log-probability of each token, in nats, <= 0. ``mean_A`` and ``variance_A``: mean (nats) and variance (nats squared) of
    the log-probability of a token drawn from the model at that position. ``hit_A``: whether the token is the model's first choice.
    ``target_A``: its id. ``row_A``: its row, ascending. ``texts``: the answer of each row as text, or empty.

    Raises:
        DataError: ``texts`` is neither empty nor one text per row.
    """

    logprob_A: Tensor
    mean_A: Tensor
    variance_A: Tensor
    hit_A: Tensor
    target_A: Tensor
    row_A: Tensor
    n_rows: int
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.texts and len(self.texts) != self.n_rows:
            raise DataError(f"texts must be empty or one per row ({self.n_rows}); found {len(self.texts)}.")

    def nll(self) -> Tensor:
        """Mean negative log-likelihood per token of each row ``[n_rows]``, in nats; nan for a row without labels."""
        return row_mean(-self.logprob_A, self.row_A, self.n_rows)

    def probability(self) -> Tensor:
        """``unlearn.functional.memorisation.probability`` of each row ``[n_rows]``."""
        return (-self.nll()).exp()

    def exact_memorisation(self, eos_id: int | None = None, compat: bool = False) -> Tensor:
        """``unlearn.functional.memorisation.exact_memorisation`` of each row ``[n_rows]``."""
        keep_A = scored(self.target_A, self.row_A, eos_id, compat)
        return hit_share(self.hit_A[keep_A], self.row_A[keep_A], self.n_rows, self.logprob_A.dtype)

    def extraction_strength(self, eos_id: int | None = None, compat: bool = False) -> Tensor:
        """``unlearn.functional.memorisation.extraction_strength`` of each row ``[n_rows]``."""
        keep_A = scored(self.target_A, self.row_A, eos_id, compat)
        return suffix_share(self.hit_A[keep_A], self.row_A[keep_A], self.n_rows, self.logprob_A.dtype, at_least_one=compat)


def _moments(logits_AV: Tensor, targets_A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probability of the target, mean and variance of all of them under the distribution itself).

    Log-probabilities below ``IMPOSSIBLE`` have no weight; they are raised to it so that 0 times -inf stays 0.
    """
    logprobs_AV = upcast(logits_AV).log_softmax(-1)
    logprob_A = logprobs_AV.gather(1, targets_A[:, None])[:, 0]
    p_AV = logprobs_AV.exp()
    logprobs_AV.clamp_(min=IMPOSSIBLE)
    mean_A = torch.linalg.vecdot(p_AV, logprobs_AV)
    centred_AV = logprobs_AV.sub_(mean_A[:, None])
    return logprob_A, mean_A, torch.linalg.vecdot(p_AV.mul_(centred_AV), centred_AV)


@torch.no_grad()
def token_scores(logits_AV: Tensor, targets_A: Tensor, row_A: Tensor, n_rows: int, texts: Sequence[str] = ()) -> TokenScores:
    """Scores of the answer tokens of one batch, float32 at least.

    Args:
        logits_AV: logits that predict the targets, row after row (``unlearn.functional.tokens.answer_logits``).
        targets_A: labelled tokens.
        row_A: row of each token, ascending.
        n_rows: rows of the batch.
        texts: the answers as text, one per row, for the attack that compares with a compressor.

    Raises:
        DataError: another number of texts than rows.

    >>> scores = token_scores(torch.tensor([[0.0, 0.0], [1.0986, 0.0]]), torch.tensor([0, 1]), torch.tensor([0, 0]), 1)
    >>> scores.logprob_A, scores.mean_A, scores.variance_A, scores.hit_A
    (tensor([-0.6931, -1.3863]), tensor([-0.6931, -0.5623]), tensor([0.0000, 0.2263]), tensor([ True, False]))
    """
    dtype = torch.promote_types(logits_AV.dtype, torch.float32)
    logprob_A, mean_A, variance_A = (torch.zeros(len(targets_A), dtype=dtype, device=logits_AV.device) for _ in range(3))
    for start in range(0, len(targets_A), CHUNK):
        part = slice(start, start + CHUNK)
        logprob_A[part], mean_A[part], variance_A[part] = _moments(logits_AV[part], targets_A[part])
    return TokenScores(
        logprob_A=logprob_A,
        mean_A=mean_A,
        variance_A=variance_A,
        hit_A=logits_AV.argmax(-1) == targets_A,
        target_A=targets_A,
        row_A=row_A,
        n_rows=n_rows,
        texts=tuple(texts),
    )


def join_scores(parts: Sequence[TokenScores], places: Sequence[Sequence[int]] | None = None) -> TokenScores:
    """One ``TokenScores`` of several batches.

    Args:
        parts: batches, at least one.
        places: the row of the whole that each row of each batch is (as ``unlearn.data.tokenize.batches`` gives it); None lays the batches
            one after the other.

    Raises:
        DataError: no batch, places that do not name every row once, or texts in some batches only.

    >>> a, b = (token_scores(torch.zeros(2, n), torch.tensor([0, 0]), torch.tensor([0, 1]), 2) for n in (2, 4))
    >>> join_scores([a, b], places=[[3, 0], [1, 2]]).nll()
    tensor([0.6931, 1.3863, 1.3863, 0.6931])
    """
    if not parts:
        raise DataError("parts must hold at least one batch; found none.")
    n_rows = sum(part.n_rows for part in parts)
    flat = list(range(n_rows)) if places is None else [place for rows in places for place in rows]
    if sorted(flat) != list(range(n_rows)) or (places is not None and [len(p) for p in places] != [p.n_rows for p in parts]):
        raise DataError(f"places must name each of the {n_rows} rows once, batch by batch; found {flat[:10]}.")
    with_texts = [part for part in parts if part.texts or not part.n_rows]
    if with_texts and len(with_texts) != len(parts) and any(part.texts for part in parts):
        raise DataError(f"texts must be in all batches or in none; found them in {len(with_texts)} of {len(parts)}.")
    device = parts[0].row_A.device
    offsets = [sum(part.n_rows for part in parts[:i]) for i in range(len(parts))]
    behind_A = torch.cat([part.row_A + offset for part, offset in zip(parts, offsets, strict=True)])
    row_A = torch.tensor(flat, dtype=torch.long, device=device)[behind_A]
    order_A = row_A.argsort(stable=True)

    def laid(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[order_A]

    by_place = dict(zip(flat, (text for part in parts for text in part.texts), strict=False))
    return TokenScores(
        logprob_A=laid("logprob_A"),
        mean_A=laid("mean_A"),
        variance_A=laid("variance_A"),
        hit_A=laid("hit_A"),
        target_A=laid("target_A"),
        row_A=row_A[order_A],
        n_rows=n_rows,
        texts=tuple(by_place[place] for place in range(n_rows)) if by_place else (),
    )
