"""One teacher-forced pass over a set of rows; everything that is about likelihood is made from what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from unlearn.data.tokenize import batches
from unlearn.evaluation.shard import spread
from unlearn.functional.scores import TokenScores, join_scores, token_scores
from unlearn.models.decoder import device_of, head, text_config
from unlearn.models.forward import answer_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.data.tokenize import TokenRow
    from unlearn.types import TokenBatch

LOGITS = 2**26
"""Most logits that are in memory at once (256 MiB in fp32)."""


class _RowScores(NamedTuple):
    """Scores of one row's answer tokens, as they travel between processes."""

    logprob: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    hit: np.ndarray
    target: np.ndarray


def score_batch(lm: PreTrainedModel, batch: TokenBatch) -> TokenScores:
    """Scores of one batch: one run of the decoder, then the head on as many answer positions at a time as ``LOGITS`` allows."""
    hidden = answer_hidden(lm, batch)
    n_rows = len(batch.row_id_B)
    step = max(1, LOGITS // int(text_config(lm).vocab_size))
    parts = []
    for start in range(0, max(1, len(hidden.targets_A)), step):
        here = slice(start, start + step)
        parts.append(token_scores(head(lm, hidden.final_AD[here]), hidden.targets_A[here], hidden.row_A[here], n_rows))
    return TokenScores(
        logprob_A=torch.cat([part.logprob_A for part in parts]),
        mean_A=torch.cat([part.mean_A for part in parts]),
        variance_A=torch.cat([part.variance_A for part in parts]),
        hit_A=torch.cat([part.hit_A for part in parts]),
        target_A=hidden.targets_A,
        row_A=hidden.row_A,
        n_rows=n_rows,
    )


@torch.no_grad()
def score(lm: PreTrainedModel, tokens: Sequence[TokenRow], reader: Reader, texts: Sequence[str] = ()) -> TokenScores:
    """Scores of every row, in the order given: one forward for each batch of ``reader.batch_size`` rows, shared out over the processes.

    Args:
        lm: the model.
        tokens: rows; at least one.
        reader: for the batch size and the padding token.
        texts: the answers as text, for the zlib attack; empty leaves them out.
    """
    device = device_of(lm)

    def work(mine: Sequence[TokenRow]) -> list[_RowScores]:
        parts, places = [], []
        for index, cpu_batch in batches(mine, reader.batch_size, reader.pad_id):
            parts.append(score_batch(lm, type(cpu_batch)(*(t.to(device) for t in cpu_batch))))
            places.append(index)
        return _rows_of(join_scores(parts, places)) if parts else []

    return _scores_of(spread(tokens, work), texts)


def _rows_of(scores: TokenScores) -> list[_RowScores]:
    """One item for each row."""
    ends = np.cumsum(np.bincount(scores.row_A.cpu().numpy(), minlength=scores.n_rows))[:-1]
    columns = [scores.logprob_A, scores.mean_A, scores.variance_A, scores.hit_A, scores.target_A]
    split = [np.split(column.cpu().numpy(), ends) for column in columns]
    return [_RowScores(*row) for row in zip(*split, strict=True)]


def _scores_of(rows: Sequence[_RowScores], texts: Sequence[str]) -> TokenScores:
    """The rows laid end to end again."""
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True)]
    counts = torch.tensor([len(row.target) for row in rows])
    return TokenScores(
        logprob_A=columns[0].double(),
        mean_A=columns[1].double(),
        variance_A=columns[2].double(),
        hit_A=columns[3],
        target_A=columns[4],
        row_A=torch.repeat_interleave(torch.arange(len(rows)), counts),
        n_rows=len(rows),
        texts=tuple(texts),
    )
