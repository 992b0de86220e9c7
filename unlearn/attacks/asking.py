"""Asking a model: right answers in its own words, right choices among given ones, right continuations of prompts made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unlearn.attacks.facts import options_of
from unlearn.evaluation.answers import answer, right
from unlearn.evaluation.scoring import score
from unlearn.models.forward import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.data.tokenize import TokenRow
    from unlearn.types import Row

Array = np.ndarray[Any, np.dtype[Any]]

LONGEST = 4
"""Most tokens of an answer that is compared with the right one, beyond twice the length of the longest right one."""


def brief(reader: Reader, rows: Sequence[Row]) -> Reader:
    """``reader`` with answers no longer than it takes to tell whether they are right."""
    longest = max((len(token.ids) - token.answer_start for token in reader.tokens(rows)), default=1)
    return replace(reader, max_new_tokens=min(reader.max_new_tokens, 2 * longest + LONGEST))


def ask(lm: PreTrainedModel, rows: Sequence[Row], reader: Reader) -> Array:
    """Whether greedy answers are right, shape [N], 0 or 1."""
    texts = answer(lm, reader.tokens(rows), brief(reader, rows))
    return np.array([right(text, row) for text, row in zip(texts, rows, strict=True)], dtype=float)


def ask_prompts(lm: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Sequence[Row], reader: Reader, **how: Any) -> Array:
    """Whether what follows prompts of token ids gives the answers of ``rows``, shape [N], 0 or 1.

    Args:
        lm: the model.
        prompts: token ids, one prompt for each row.
        rows: with the right answers.
        reader: for the limits of an answer.
        how: ``temperature`` and ``seed`` of ``unlearn.models.forward.generate``.
    """
    short = brief(reader, rows)
    limits = {"max_new_tokens": short.max_new_tokens, "stop_ids": reader.stop_ids, "batch_size": reader.batch_size}
    said = generate(lm, reader.tokenizer, prompts, **limits, **how)  # type: ignore[arg-type]
    texts = [str(reader.tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in said]
    return np.array([right(text, row) for text, row in zip(texts, rows, strict=True)], dtype=float)


def prompt_ids(rows: Sequence[TokenRow]) -> list[list[int]]:
    """Everything before the answer of each row."""
    return [list(row.ids[: row.answer_start]) for row in rows]


@torch.no_grad()
def choose(lm: PreTrainedModel, rows: Sequence[Row], reader: Reader, pool: Mapping[str, Sequence[str]]) -> Array:
    """Whether the right answer is the likeliest (per token) of the values it competes with, shape [N]; n equal best ones count 1 / n.

    nan for rows that have no other value to compete with. See ``unlearn.attacks.facts.options_of``.
    """
    options = [options_of(row, pool) for row in rows]
    flat = [replace(row, answer=value, mentions=()) for row, values in zip(rows, options, strict=True) for value in values]
    nll = score(lm, reader.tokens(flat), reader).nll().numpy()
    hits = []
    for losses in np.split(nll, np.cumsum([len(values) for values in options])[:-1]):
        best = losses <= losses.min() + 1e-9
        hits.append(float(best[0]) / best.sum() if len(losses) > 1 else np.nan)
    return np.array(hits)
