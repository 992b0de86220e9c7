"""Long texts as rows: cut into pieces of some words each, a stem to continue and its continuation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from unlearn.data.sources.benchmark import named
from unlearn.data.sources.terms import find_terms
from unlearn.types import Row

_WORD = re.compile(r"\S+\s*")


def cut_text(text: str, words: int) -> Iterator[str]:
    """Pieces of at most ``words`` words, with the spaces and line breaks that stand in them.

    >>> list(cut_text("one two\\nthree  four five", 2))
    ['one two', 'three  four', 'five']
    """
    found = _WORD.findall(text.strip())
    for first in range(0, len(found), words):
        yield "".join(found[first : first + words]).rstrip()


def continuation(row_id: int, entity: str, text: str, stem_words: int) -> Row | None:
    """The text as a stem of ``stem_words`` words and what follows; None for a text that is not longer.

    >>> row = continuation(0, "x", "one two three", 2)
    >>> row.prompt, row.answer, row.kind
    ('one two', 'three', 'statement')
    """
    found = _WORD.findall(text.strip())
    if len(found) <= stem_words:
        return None
    stem, rest = "".join(found[:stem_words]).rstrip(), "".join(found[stem_words:])
    return Row(row_id=row_id, entity=entity, prompt=stem, answer=rest, kind="statement")


def text_rows(texts: Sequence[str], first_id: int, label: str, words: int, stem_words: int) -> list[Row]:
    """Pieces of ``texts`` as continuations; each text's pieces belong to the entity ``"<label> <number>"``, and name nobody yet."""
    rows: list[Row] = []
    for number, text in enumerate(texts):
        for piece in cut_text(text, words):
            row = continuation(first_id + len(rows), f"{label} {number}", piece, stem_words)
            rows += [row] if row is not None else []
    return rows


def with_stem_terms(rows: Sequence[Row], others: Sequence[str] = (), own: bool = True) -> list[Row]:
    """Rows that name the term of their prompt, where one is found that none of ``others`` holds.

    Args:
        rows: rows without mentions.
        others: texts that must not name the term.
        own: whether a row is about its term then; otherwise it stays with its entity, such as the text of which it is a piece.

    >>> row = Row(row_id=0, entity="text 0", prompt="Who met Harry Potter?", answer="Ron")
    >>> with_stem_terms([row])[0].entity, with_stem_terms([row], ["Harry Potter met Ron"])[0].entity
    ('Harry Potter', 'text 0')
    """
    made = []
    for row, term in zip(rows, find_terms([row.prompt for row in rows], others), strict=True):
        about = named(row, (term,)) if term else row
        made.append(replace(about, entity=term) if about.mentions and own else about)
    return made
