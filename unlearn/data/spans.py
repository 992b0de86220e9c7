"""Which answer tokens of a row lie in a stretch of its text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unlearn.data.reader import Reader
from unlearn.data.tokenize import render
from unlearn.types import IGNORE_INDEX, Row, TokenBatch


def _stretches(row: Row, patterns: Sequence[re.Pattern[str]]) -> list[tuple[int, int]]:
    """Character spans of the row's answer: what the patterns find, or the whole without patterns."""
    if not patterns:
        return [(len(row.answer) - len(row.answer.lstrip()), len(row.answer))]
    return [match.span() for pattern in patterns for match in pattern.finditer(row.answer) if match.group()]


def answer_masks(rows: Sequence[Row], reader: Reader, patterns: Sequence[re.Pattern[str]] = ()) -> dict[int, tuple[bool, ...]]:
    """For each row id, one flag per answer token that something predicts: whether it overlaps a stretch of the answer's text.

    Args:
        rows: rows, tokenised as ``reader.tokens`` does it.
        reader: tokenizer and prompt format.
        patterns: what to look for in the answer's text; none: the whole answer, without what follows it (end of sequence).

    Returns:
        Flags in the order of the row's labels; a label of the very first token has none.
    """
    if not rows:
        return {}
    parts = [render(row, reader.prompt_format) for row in rows]
    encoded = reader.tokenizer(["".join(p) for p in parts], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    bos = reader.tokenizer.bos_token_id
    masks = {}
    for row, part, made, ids, spans in zip(rows, parts, reader.tokens(rows), encoded["input_ids"], encoded["offset_mapping"], strict=True):
        front = int(bos is not None and ids[0] != bos)
        wanted = [(start + len(part[0]), end + len(part[0])) for start, end in _stretches(row, patterns)]
        hit = [any(start < last and end > first and end > start for first, last in wanted) for start, end in spans]
        padded = [False] * front + hit + [False] * (len(made.ids) - front - len(hit))
        masks[row.row_id] = tuple(padded[max(made.answer_start, 1) :])
    return masks


def batch_mask(masks: Mapping[int, Sequence[bool]], batch: TokenBatch) -> Tensor:
    """Flags [A] of ``answer_masks`` for the answer tokens of a batch, in their order; False for rows that are not in ``masks``."""
    counts = (batch.labels_BT[:, 1:] != IGNORE_INDEX).sum(1).tolist()
    flags = [f for i, n in zip(batch.row_id_B.tolist(), counts, strict=True) for f in masks.get(i, (False,) * n)]
    return torch.tensor(flags, dtype=torch.bool, device=batch.labels_BT.device)
