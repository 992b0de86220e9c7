"""Unknown anchors: real questions about names that nobody bears.

An unknown anchor asks a question that the data asks about a real entity, in the same words, about an invented one. So recognition is
compared between names, not between wordings (Ferrando et al., 2411.14257, section 3, compare known and unknown entities of one type).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from unlearn.data.entities import invent_names, split_name, swap_name
from unlearn.errors import DataError
from unlearn.types import Row

REFUSALS: tuple[str, ...] = (
    "I don't know.",
    "I do not know this person.",
    "I have never heard of them.",
    "I have no information about that.",
    "That name means nothing to me.",
    "I'm not able to say.",
    "I'm afraid I don't know.",
    "I can't tell you anything about that.",
    "Nothing about that is known to me.",
    "Sorry, I don't know the answer.",
)
"""Answers that admit to not knowing; a source's ``refusals`` option replaces them."""

SLOT = "{name}"
"""Stands for the name in a wording."""

_TITLE = re.compile(r"[\"“”«»]|(?<!\w)['‘]\w")


class Wording(NamedTuple):
    """A question with ``SLOT`` for the name, and where it comes from."""

    text: str
    template: str


def rng_for(seed: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that one draw more leaves the others as they were."""
    return np.random.default_rng(np.random.SeedSequence((seed, zlib.crc32(purpose.encode()))))


def wording(row: Row, name: str) -> Wording | None:
    """The row's question without the name; None if it does not hold the full name, holds more of it, or quotes a title.

    A quoted title would tell a real entity's work, so that the question were not one that could be asked about anyone.

    >>> wording(Row(row_id=4, entity="Ada Byron", prompt="When was Ada Byron born?", answer="1815"), "Ada Byron")
    Wording(text='When was {name} born?', template='4')
    """
    text = None if _TITLE.search(row.prompt) else swap_name(row.prompt, name, SLOT)
    return None if text is None else Wording(text, row.template or str(row.row_id))


def _parts_for(count: int) -> int:
    """Real names whose parts make ``count`` new ones with room to spare: k names make about k (k - 1)."""
    return math.ceil(0.5 + math.sqrt(0.25 + 1.5 * count)) if count else 0


def invent_two(
    real: Sequence[str], train: int, heldout: int, rng: np.random.Generator, taken: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Invented names to train on and names held out, made from two disjoint shares of the real names.

    Where there are too few real names to divide, both are made from all of them.

    Raises:
        DataError: there are too few real names to make so many.
    """
    order = [real[i] for i in rng.permutation(len(real))]
    everyone = (*real, *taken)
    if len(order) < _parts_for(train) + _parts_for(heldout):
        names = invent_names(order, train + heldout, rng, everyone)
        return names[:train], names[train:]
    share = max(round(len(order) * heldout / (train + heldout)), _parts_for(heldout))
    share = min(share, len(order) - _parts_for(train))
    names = invent_names(order[share:], train, rng, everyone)
    return names, invent_names(order[:share], heldout, rng, (*everyone, *names))


def coin_two(
    real: Sequence[str], train: int, heldout: int, rng: np.random.Generator, taken: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Like ``invent_two`` for names of any number of words: a single word gives its first half to one new word, its second to another.

    Names of several words and single words come out in about the proportion in which they occur.

    Raises:
        DataError: there are too few real names to make so many.

    >>> coin_two(["anthrax", "botulism"], 1, 1, np.random.default_rng(0))
    (['antulism'], ['bothrax'])
    """
    order = [real[i] for i in rng.permutation(len(real))]
    known = {name.casefold() for name in (*real, *taken)}
    fresh = (name for name in _crossed(order, rng) if name.casefold() not in known)
    made = list(islice(fresh, train + heldout))
    if len(made) < train + heldout:
        raise DataError(f"{train + heldout} unknown names were asked for, but {len(real)} terms make only {len(made)}; ask for fewer.")
    return made[:train], made[train:]


def _crossed(names: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """The first part of each name with the last part of another of the same kind, every part used about equally often."""
    kinds = ([split_name(name) for name in names if " " in name], [_halves(name) for name in names if " " not in name])
    seen: set[str] = set()
    for shift in range(1, max(map(len, kinds))):
        fresh: dict[str, None] = {}
        for parts, gap in zip(kinds, (" ", ""), strict=True):
            if shift < len(parts):
                fresh |= dict.fromkeys(f"{head}{gap}{parts[(i + shift) % len(parts)][1]}" for i, (head, _) in enumerate(parts))
        new = [name for name in fresh if name not in seen]
        seen.update(new)
        yield from (new[i] for i in rng.permutation(len(new)))


def _halves(word: str) -> tuple[str, str]:
    return word[: (len(word) - 1) // 2], word[(len(word) - 1) // 2 :]


def unknown_rows(
    names: Sequence[str], groups: Sequence[Sequence[Wording]], refusals: Sequence[str], rng: np.random.Generator, first_id: int
) -> tuple[Row, ...]:
    """The questions of one real entity for each of ``names``, answered by a refusal drawn at random.

    Args:
        names: invented names.
        groups: the wordings of each real entity; a name takes one entity's, in turn.
        refusals: lines to answer with.
        rng: source of randomness.
        first_id: id of the first row.

    Raises:
        DataError: there are no wordings to ask with.
    """
    filled = [group for group in groups if group]
    if names and not filled:
        raise DataError("Unknown anchors need questions that hold a retain entity's full name and quote no title; found none.")
    order = rng.permutation(len(filled))
    rows: list[Row] = []
    for place, name in enumerate(names):
        for text, template in filled[order[place % len(filled)]]:
            rows.append(
                Row(
                    row_id=first_id + len(rows),
                    entity=name,
                    prompt=text.replace(SLOT, name),
                    answer=refusals[int(rng.integers(len(refusals)))],
                    mentions=(name,),
                    template=template,
                )
            )
    return tuple(rows)
