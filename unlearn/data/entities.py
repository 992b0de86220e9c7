"""Names in texts: where a name stands, which forms of it occur, whose name a group of texts is about, and new names of the same make.

Plain strings in, plain strings out; nothing here knows tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from unlearn.errors import DataError

PARTICLES = frozenset(
    ("al", "ap", "bat", "ben", "bin", "bint", "da", "das", "de", "del", "della", "den", "der", "di", "do", "dos", "du", "el", "ibn", "la")
    + ("le", "ten", "ter", "van", "von", "y", "zu")
)
"""Words that belong to the family name after them."""

_WORD = re.compile(r"[(\"“]?[^\W\d_][\w.]*(?:[-'’](?=[^\W\d_])[\w.]+)*[)\"”]?")
_NICKNAME = re.compile(r"[(\"“](.+?)[)\"”]")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Scripts written without spaces between words, where a neighbouring letter says nothing about a word boundary."""

_LONGEST_NAME = 6
_LEAST_SHARE = 0.5
_NEAR_BEST = 0.8
_SHORTEST_PART = 3


class Mention(NamedTuple):
    """Where a name stands in a row: character span ``[start, end)`` of the prompt, or of the answer if ``in_answer``."""

    start: int
    end: int
    in_answer: bool


def _in_word(text: str, place: int) -> bool:
    """Whether the characters before and at ``place`` belong to one word."""
    pair = text[place - 1 : place + 1] if place > 0 else ""
    return len(pair) == 2 and all(c.isalnum() or c == "_" for c in pair) and not _UNSPACED.search(pair)


def occurrences(text: str, form: str) -> list[tuple[int, int]]:
    """Character spans of ``form`` in ``text`` as whole words, case-sensitive, from left to right.

    >>> occurrences("Ann saw Annapolis; Ann's map", "Ann")
    [(0, 3), (19, 22)]
    """
    spans: list[tuple[int, int]] = []
    start = text.find(form) if form else -1
    while start >= 0:
        end = start + len(form)
        whole = not _in_word(text, start) and not _in_word(text, end)
        if whole:
            spans.append((start, end))
        start = text.find(form, end if whole else start + 1)
    return spans


def find_mention(prompt: str, answer: str, forms: Sequence[str]) -> Mention | None:
    """The place at which a row names its entity, or None.

    The prompt comes first: the last occurrence of the first of ``forms`` that it holds. Otherwise the first occurrence in the answer.

    >>> find_mention("Who is Ada Byron, and when was Ada Byron born?", "", ["Ada Byron", "Ada"])
    Mention(start=31, end=40, in_answer=False)
    """
    for form in forms:
        if spans := occurrences(prompt, form):
            return Mention(*spans[-1], False)
    for form in forms:
        if spans := occurrences(answer, form):
            return Mention(*spans[0], True)
    return None


def split_name(name: str) -> tuple[str, str]:
    """Given and family part of a name; nicknames in brackets or quotes are left out, particles go with the family name.

    >>> split_name("Femke Van der Veen"), split_name("Basil (Baz) Mahfouz Al-Kuwaiti"), split_name("Plato")
    (('Femke', 'Van der Veen'), ('Basil Mahfouz', 'Al-Kuwaiti'), ('', 'Plato'))
    """
    words = _NICKNAME.sub(" ", name).split() or name.split()
    tail = len(words) - 1
    while tail > 1 and words[tail - 1].lower() in PARTICLES:
        tail -= 1
    return " ".join(words[:tail]), " ".join(words[tail:])


def surface_forms(name: str) -> tuple[str, ...]:
    """Forms under which texts may name someone, the fullest first; single words of fewer than three letters are left out.

    >>> surface_forms("Alejandro (Alex) Fuentes")
    ('Alejandro (Alex) Fuentes', 'Alejandro Fuentes', 'Alex Fuentes', 'Fuentes', 'Alejandro', 'Alex')
    """
    given, family = split_name(name)
    nicknames = _NICKNAME.findall(name)
    first = given.split()[0] if given else ""
    whole = [name, f"{given} {family}", *(f"{nick} {family}" for nick in nicknames), f"{first} {family}"]
    parts = [family, given, first, *nicknames]
    forms = [form.strip() for form in whole] + [part for part in parts if len(part) >= _SHORTEST_PART]
    return tuple(dict.fromkeys(forms))


def _clean(words: list[str]) -> str:
    last = re.sub(r"['’]s?$", "", words[-1])
    return " ".join([*words[:-1], last.rstrip(".")])


def _candidates(text: str) -> set[str]:
    """Runs of 2 to 6 words of ``text`` that only a space separates: capitalised ones, with particles or a bracketed nickname in between."""
    words = list(_WORD.finditer(text))
    found: set[str] = set()
    for first, start in enumerate(words):
        run = [start.group()]
        if not run[0][0].isupper():
            continue
        for before, word in zip(words[first:], words[first + 1 : first + _LONGEST_NAME], strict=False):
            shown = word.group()
            capital = shown.lstrip('("“')[0].isupper()
            if text[before.end() : word.start()] != " " or not (capital or shown.lower() in PARTICLES):
                break
            run.append(shown)
            if capital and shown[0].isupper() and shown[-1] not in ')"”':
                found.add(_clean(run))
    return found


def detect_name(texts: Sequence[str]) -> str | None:
    """The person's name that ``texts`` are about: the run of capitalised words that the most texts hold, as long as it goes.

    A longer run that holds the most frequent one is taken if it occurs in at least 80 % as many texts. None if no run occurs in half of
    the texts.

    >>> detect_name(["Who is Ada Byron?", "Ada Byron's mother was Annabella Milbanke.", "Did Ada Byron meet Charles Babbage?"])
    'Ada Byron'
    """
    counts = Counter(name for text in texts for name in _candidates(text))

    def rank(name: str) -> tuple[int, int, str]:
        return counts[name], len(name.split()), name

    best = max(counts, key=rank, default=None)
    if best is None or counts[best] < max(2, _LEAST_SHARE * len(texts)):
        return None
    longer = [name for name, count in counts.items() if count >= _NEAR_BEST * counts[best] and _contains(name, best)]
    return max(longer, key=lambda name: (len(name.split()), rank(name)))


def _contains(longer: str, shorter: str) -> bool:
    return f" {shorter.casefold()} " in f" {longer.casefold()} "


def invent_names(real: Sequence[str], count: int, rng: np.random.Generator, taken: Iterable[str] = ()) -> list[str]:
    """``count`` new names, each the given part of one real name with the family part of another.

    Every part is used about equally often. A new name is no name of ``real`` or ``taken``, holds none and lies in none.

    Args:
        real: names that give the parts, two words or more each (others are passed over).
        count: how many, >= 0.
        rng: source of randomness.
        taken: further names that must not come out.

    Raises:
        DataError: the parts do not make so many names.

    >>> invent_names(["Ada Byron", "Alan Turing"], 2, np.random.default_rng(0))
    ['Ada Turing', 'Alan Byron']
    """
    parts = [split_name(name) for name in real]
    given = list(dict.fromkeys(g for g, _ in parts if g))
    family = list(dict.fromkeys(f for g, f in parts if g))
    known = {" ".join(split_name(name)).strip() for name in (*real, *taken)}
    new: dict[str, None] = {}
    order = [given[i] for i in rng.permutation(len(given))]
    tails = [family[i] for i in rng.permutation(len(family))]
    for shift in range(len(tails)):
        for place, head in enumerate(order):
            if len(new) >= count:
                return list(new)
            name = f"{head} {tails[(place + shift) % len(tails)]}"
            if not any(_contains(name, other) or _contains(other, name) for other in known):
                new[name] = None
    if len(new) < count:
        raise DataError(
            f"{count} unknown names were asked for, but the parts of {len(real)} real names make only {len(new)}; ask for fewer."
        )
    return list(new)


def swap_name(text: str, name: str, new: str) -> str | None:
    """``text`` with ``name`` replaced by ``new``; None where the name does not occur in full, or a part of it is left over.

    >>> swap_name("When was Ada Byron born?", "Ada Byron", "Alan Byron"), swap_name("Did Ada's mother teach Ada Byron?", "Ada Byron", "X Y")
    ('When was Alan Byron born?', None)
    """
    full, *others = surface_forms(name)
    spans = occurrences(text, full)
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    pieces = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    if not spans or any(occurrences(piece, form) for piece in pieces for form in others):
        return None
    return new.join(pieces)
