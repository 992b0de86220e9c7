"""From rows to token ids and batches. A row's text is tokenised once and whole; everything else is a position in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unlearn.data.entities import find_mention
from unlearn.errors import DataError
from unlearn.types import IGNORE_INDEX, NO_ENTITY, PromptFormat, Row, TokenBatch

_LISTED = 5


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A tokenised row: ``ids`` with the answer from ``answer_start`` on; ``ids[:answer_start]`` is the prompt to generate from.

    ``entity_end`` is the index of the last token of the entity's name, ``NO_ENTITY`` where the row names none.
    """

    ids: tuple[int, ...]
    answer_start: int
    entity_end: int
    row_id: int


@dataclass(frozen=True, slots=True)
class _Text:
    """A row as text: ``prompt_end`` and ``answer_start`` are character indices, ``entity`` a character span or None."""

    text: str
    answer_start: int
    entity: tuple[int, int] | None


def render(row: Row, fmt: PromptFormat) -> tuple[str, str, str]:
    """The three stretches of a row's text: prompt with what separates it from the answer, answer, and what follows the answer.

    ``qa`` rows go through ``fmt``; a ``statement`` or ``mention`` is its stem, a space and the answer; ``text`` is the answer alone.

    >>> render(Row(row_id=0, entity="Oslo", prompt="Where is Oslo?", answer="Norway"), PromptFormat())
    ('Question: Where is Oslo?\\nAnswer: ', 'Norway', '')
    """
    if row.kind == "text":
        return "", row.answer, ""
    if row.kind == "qa":
        return fmt.question.replace("{question}", row.prompt) + fmt.separator, row.answer, fmt.end
    gap = " " if row.prompt and not row.prompt[-1].isspace() else ""
    return row.prompt + gap, row.answer, ""


def _name(row: Row) -> str:
    return f"row {row.row_id} ({row.entity or row.kind})"


def _place(row: Row, fmt: PromptFormat) -> _Text:
    prompt, answer, end = render(row, fmt)
    visible = len(answer) - len(answer.lstrip())
    if visible == len(answer):
        raise DataError(f"{_name(row)} must have an answer; found {answer!r}.")
    return _Text(prompt + answer + end, len(prompt) + visible, _entity(row, fmt, prompt, answer) if row.mentions else None)


def _entity(row: Row, fmt: PromptFormat, prompt: str, answer: str) -> tuple[int, int]:
    """Where the text names its entity: in the question itself before the words around it, which may hold the same word."""
    front = fmt.question.rpartition("{question}")[0].replace("{question}", row.prompt) if row.kind == "qa" else ""
    if found := find_mention(row.prompt, "", row.mentions):
        return found.start + len(front), found.end + len(front)
    found = find_mention(prompt, answer, row.mentions)
    if found is None:
        raise DataError(
            f"{_name(row)} must name its entity as one of {list(row.mentions)}; found neither in {row.prompt!r} nor in {row.answer!r}."
        )
    shift = len(prompt) if found.in_answer else 0
    return found.start + shift, found.end + shift


def _first_token(spans: Sequence[tuple[int, int]], char: int) -> int:
    """Index of the first token whose span reaches past ``char``; ``len(spans)`` if none does."""
    return next((i for i, (start, end) in enumerate(spans) if end > char and end > start), len(spans))


def _last_token(spans: Sequence[tuple[int, int]], first: int, last: int) -> int:
    """Index of the last token that overlaps the characters ``[first, last)``; -1 if none does."""
    return max((i for i, (start, end) in enumerate(spans) if start < last and end > first and end > start), default=-1)


def _locate(row: Row, placed: _Text, ids: list[int], spans: Sequence[tuple[int, int]], bos: int | None, eos: int | None) -> TokenRow:
    answer_start = 0 if row.kind == "text" else _first_token(spans, placed.answer_start)
    if answer_start >= len(spans):
        raise DataError(f"{_name(row)} must keep its answer as tokens; the tokenizer drops {row.answer!r}.")
    entity_end = NO_ENTITY
    if placed.entity is not None:
        entity_end = _last_token(spans, *placed.entity)
        if entity_end < 0:
            raise DataError(f"{_name(row)} must keep its entity as tokens; the tokenizer drops {placed.text[slice(*placed.entity)]!r}.")
    front = [] if bos is None or ids[0] == bos else [bos]
    back = [] if eos is None or row.kind == "text" or ids[-1] == eos else [eos]
    return TokenRow(
        ids=(*front, *ids, *back),
        answer_start=int(bos is not None) if row.kind == "text" else answer_start + len(front),
        entity_end=NO_ENTITY if placed.entity is None else entity_end + len(front),
        row_id=row.row_id,
    )


def tokenize_rows(rows: Sequence[Row], tokenizer: Any, fmt: PromptFormat, max_length: int) -> list[TokenRow]:
    """Tokenise ``rows``, in order.

    Prompt and answer are tokenised as one text, and the character offsets of the tokens tell where the answer starts and where the
    entity's name ends. The answer starts at the token that covers its first visible character: a token that merges the space before it
    (or the end of the prompt) belongs to the answer. The beginning-of-sequence token comes first if the tokenizer has one, and is never an
    entity token; the end-of-sequence token follows the answer if ``fmt.append_eos`` (not after ``text`` rows).

    Args:
        rows: what to tokenise.
        tokenizer: a fast Hugging Face tokenizer.
        fmt: how a question becomes text.
        max_length: most tokens of a row, >= 2.

    Raises:
        DataError: an entity that occurs nowhere in its row as a whole word, an empty answer, a row that is too long, or a tokenizer
            without offsets or without an end-of-sequence token that is asked for.
    """
    if not rows:
        return []
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"The tokenizer must be a fast one (it has to tell character offsets); found {type(tokenizer).__name__}.")
    eos = tokenizer.eos_token_id if fmt.append_eos else None
    if fmt.append_eos and eos is None:
        raise DataError("data.append_eos must be false for a tokenizer without an end-of-sequence token.")
    placed = [_place(row, fmt) for row in rows]
    encoded = tokenizer([p.text for p in placed], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    bos = tokenizer.bos_token_id
    done = [_locate(row, p, i, s, bos, eos) for row, p, i, s in zip(rows, placed, ids, spans, strict=True)]
    long = [(row, len(tokens.ids)) for row, tokens in zip(rows, done, strict=True) if len(tokens.ids) > max_length]
    if long:
        which = ", ".join(f"{_name(row)} has {length}" for row, length in long[:_LISTED])
        raise DataError(f"Every row must have at most data.max_length = {max_length} tokens; {len(long)} rows are longer: {which}.")
    return done


def collate(rows: Sequence[TokenRow], pad_id: int, least: int = 0) -> TokenBatch:
    """Pad ``rows`` on the right into one batch, ``least`` tokens wide or more; prompt and padding carry no label.

    >>> collate([TokenRow((1, 5, 6, 7), 2, 1, 0), TokenRow((1, 8), 1, -1, 3)], pad_id=0).labels_BT.tolist()
    [[-100, -100, 6, 7], [-100, 8, -100, -100]]
    """
    width = max(least, *(len(row.ids) for row in rows))
    input_ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    labels_BT = torch.full((len(rows), width), IGNORE_INDEX, dtype=torch.long)
    for b, row in enumerate(rows):
        ids_T = torch.tensor(row.ids, dtype=torch.long)
        input_ids_BT[b, : len(row.ids)] = ids_T
        attention_mask_BT[b, : len(row.ids)] = 1
        labels_BT[b, row.answer_start : len(row.ids)] = ids_T[row.answer_start :]
    return TokenBatch(
        input_ids_BT=input_ids_BT,
        attention_mask_BT=attention_mask_BT,
        labels_BT=labels_BT,
        entity_end_B=torch.tensor([row.entity_end for row in rows], dtype=torch.long),
        answer_start_B=torch.tensor([row.answer_start for row in rows], dtype=torch.long),
        row_id_B=torch.tensor([row.row_id for row in rows], dtype=torch.long),
    )


def pad_id(tokenizer: Any) -> int:
    """The padding token's id; without one the end-of-sequence token's, else 0 (padding is masked, so any id will do)."""
    return next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def batches(rows: Sequence[TokenRow], batch_size: int, pad_id: int) -> Iterator[tuple[list[int], TokenBatch]]:
    """Batches for measuring: rows of like length together, each batch with the places of its rows in ``rows``.

    >>> [places for places, _ in batches([TokenRow((1,) * n, 0, -1, n) for n in (2, 9, 3)], 2, 0)]
    [[1, 2], [0]]
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        yield places, collate([rows[i] for i in places], pad_id)


def stop_ids(tokenizer: Any, fmt: PromptFormat) -> tuple[int, ...]:
    """Tokens that end an answer: the first token of the text after an answer, where there is one."""
    end = fmt.end.strip()
    return tuple(tokenizer(end, add_special_tokens=False)["input_ids"][:1]) if end else ()


def text_rows(texts: Iterable[str], first_id: int) -> list[Row]:
    """Rows of kind ``text``, numbered downwards from ``first_id`` (negative ids keep clear of a source's own)."""
    return [Row(row_id=first_id - i, entity="", prompt="", answer=text, kind="text") for i, text in enumerate(texts)]
