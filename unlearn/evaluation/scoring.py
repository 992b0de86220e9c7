"""One teacher-forced pass over a set of rows; everything that is about likelihood is made from what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from unlearn.data.tokenize import TokenRow, batches
from unlearn.evaluation.shard import spread
from unlearn.functional.scores import TokenScores, join_scores, token_scores
from unlearn.models.decoder import device_of, head, text_config
from unlearn.models.forward import final_hidden
from unlearn.types import NO_ENTITY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
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


def _score_context(lm: PreTrainedModel, batch: TokenBatch, rows: Sequence[Sequence[TokenRow]]) -> TokenScores:
    """Scores of rows that continue the contexts of one batch: one run of the decoder, then the head on as many positions as fit.

    Args:
        lm: the model.
        batch: contexts, padded on the right.
        rows: for each context, the rows whose tokens but the last it is.
    """
    device = batch.input_ids_BT.device
    place, position, target, row_of = [], [], [], []
    for n, (context, row) in enumerate((c, row) for c, group in enumerate(rows) for row in group):
        for t in range(max(1, row.answer_start), len(row.ids)):
            place.append(context)
            position.append(t - 1)
            target.append(row.ids[t])
            row_of.append(n)
    place_A, position_A, targets_A, row_A = (torch.tensor(v, dtype=torch.long, device=device) for v in (place, position, target, row_of))
    final_AD = final_hidden(lm, batch)[place_A, position_A]
    n_rows = sum(map(len, rows))
    step = max(1, LOGITS // int(text_config(lm).vocab_size))
    parts = []
    for start in range(0, max(1, len(targets_A)), step):
        here = slice(start, start + step)
        parts.append(token_scores(head(lm, final_AD[here]), targets_A[here], row_A[here], n_rows))
    return TokenScores(
        logprob_A=torch.cat([part.logprob_A for part in parts]),
        mean_A=torch.cat([part.mean_A for part in parts]),
        variance_A=torch.cat([part.variance_A for part in parts]),
        hit_A=torch.cat([part.hit_A for part in parts]),
        target_A=targets_A,
        row_A=row_A,
        n_rows=n_rows,
    )


def _contexts(rows: Sequence[TokenRow]) -> tuple[list[TokenRow], list[list[int]]]:
    """What the model has to read: every row without its last token, equal ones once; and the rows that continue each.

    A question with one-token answers, the right one and the wrong ones, is read once.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.ids[:-1], []).append(i)
    return [TokenRow(ids, len(ids), NO_ENTITY, n) for n, ids in enumerate(places)], list(places.values())


@torch.no_grad()
def score(lm: PreTrainedModel, tokens: Sequence[TokenRow], reader: Reader, texts: Sequence[str] = ()) -> TokenScores:
    """Scores of every row, in the order given: one forward for each batch of ``reader.batch_size`` rows, shared out over the processes.

    Rows that differ in their last token only share a place in a batch.

    Args:
        lm: the model.
        tokens: rows of two tokens or more.
        reader: for the batch size and the padding token.
        texts: the answers as text, for the zlib attack; empty leaves them out.
    """
    device = device_of(lm)

    def work(mine: Sequence[TokenRow]) -> list[_RowScores]:
        contexts, members = _contexts(mine)
        parts, places = [], []
        for index, cpu_batch in batches(contexts, reader.batch_size, reader.pad_id):
            batch = type(cpu_batch)(*(t.to(device) for t in cpu_batch))
            parts.append(_score_context(lm, batch, [[mine[i] for i in members[c]] for c in index]))
            places.append([i for c in index for i in members[c]])
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
