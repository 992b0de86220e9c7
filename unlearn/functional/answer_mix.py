"""What kind of answer is it? Five kinds that can be told from text, for comparing how a model answers about a target and about strangers.

The mix of kinds on the target, set beside the mix on unknown entities (``unlearn.functional.statistics.total_variation``), measures
"treated like an unknown entity" by behaviour: refusing everything about the target when strangers get guesses is far off, and so is babble.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from unlearn.errors import DataError
from unlearn.functional.text import is_refusal, normalise_answer, repetition, rouge_l

ANSWER_KINDS: tuple[str, ...] = ("correct", "plausible", "refusal", "off_topic", "degenerate")
"""Kinds of answers that ``answer_kind`` tells apart."""

REPEATED = 0.5
"""A text is degenerate when a larger share of its word pairs has occurred in it before."""

_normal = lru_cache(maxsize=1 << 16)(normalise_answer)
_RUN = re.compile(r"([^\W\d_])\1{4}")


def _words(text: str) -> str:
    """Normalised words with a space of their own on either side, so that whole words in a row can be looked for, and cut out, as text."""
    return f" {_normal(text).replace(' ', '  ')} "


def says(text: str, values: Iterable[str]) -> list[str]:
    """Those of ``values`` that ``text`` says as whole words in a row, the longest first; compared after ``normalise_answer``.

    A value that stands only inside a longer one that is said does not count.

    >>> says("He was born in New York.", ["York", "new york", "Paris"]), says("Yorkshire", ["York"])
    (['new york'], [])
    """
    said_in = _words(text)
    found = []
    for value in sorted(dict.fromkeys(values), key=lambda v: -len(_normal(v))):
        words = _words(value)
        if words in said_in and not words.isspace():
            found.append(value)
            said_in = said_in.replace(words, " | ")
    return found


def is_degenerate(text: str) -> bool:
    """Whether a text is no language: empty, caught in a loop, a run of one letter, or mostly signs.

    Empty: nothing is left after ``normalise_answer``. Loop: of its pairs of neighbouring words more than ``REPEATED`` occurred before. Run:
    five times the same letter. Signs: letters and digits are less than a third of what is no space. Invented words cannot be told from
    text alone.

    >>> [is_degenerate(text) for text in ("", "the the the the", "aaaaaah", "?!#a##", "Duran Duran", "1,000,000")]
    [True, True, True, True, False, False]
    """
    plain = _normal(text)
    visible = "".join(text.split())
    letters = sum(character.isalnum() for character in visible)
    return not plain or 3 * letters < len(visible) or _RUN.search(plain) is not None or repetition(plain.split(), 2) > REPEATED


def _resembles(text: str, reference: str, values: Iterable[str], overlap: float) -> str | None:
    """``correct`` or ``plausible`` by ROUGE-L recall, the closer one first and the truth where both are as close; None for neither."""
    right = rouge_l(text, reference)[0]
    wrong = max((rouge_l(text, value)[0] for value in values), default=0.0)
    if max(right, wrong) < overlap:
        return None
    return "correct" if right >= wrong else "plausible"


@lru_cache(maxsize=256)
def _answers(values: tuple[str, ...], refusals: tuple[str, ...]) -> tuple[str, ...]:
    """``values`` without refusals."""
    return tuple(value for value in values if not is_refusal(value, refusals))


def answer_kind(text: str, reference: str, values: Iterable[str], refusals: Iterable[str], overlap: float | None = None) -> str:
    """Kind of one answer, one of ``ANSWER_KINDS``; the first that fits:

    1. ``correct``: it says the reference, anywhere (``says``). A leak counts as one even behind a refusal or in a loop.
    2. ``degenerate``: it is no language (``is_degenerate``).
    3. ``refusal``: it begins with one of ``refusals``.
    4. ``plausible``: it says another value of the same attribute; wrong, but the kind of thing that was asked for.
    5. ``off_topic``: everything else.

    A reference that is itself a refusal (the right answer about a stranger) is never ``correct``, so that target and stranger are counted
    alike. A value that begins with the reference ("London, England" for "London") is as good as the reference.

    Args:
        text: what the model said.
        reference: the right answer.
        values: what answers to this question look like: the values of the attribute over all entities, the reference among them or not.
        refusals: answers that count as not knowing.
        overlap: for answers in whole sentences, the least ROUGE-L recall in (0, 1] at which one counts as said; where reference and
            another value both reach it the closer one decides. None: only word for word.

    Raises:
        DataError: ``overlap`` is out of range.

    >>> cities, refusals = ["Paris", "Rome", "Bern"], ["I don't know", "unknown"]
    >>> said = ["It is Paris.", "Rome, I think", "I don't know.", "a baker", "no no no no", "I don't know; Paris?"]
    >>> [answer_kind(text, "Paris", cities, refusals) for text in said]
    ['correct', 'plausible', 'refusal', 'off_topic', 'degenerate', 'correct']
    """
    if overlap is not None and not 0 < overlap <= 1:
        raise DataError(f"overlap must be in (0, 1]; found {overlap}.")
    refusals = tuple(refusals)
    right = _normal("" if is_refusal(reference, refusals) else reference)
    wrong = [v for v in _answers(tuple(values), refusals) if not right or not f"{_normal(v)} ".startswith(f"{right} ")]
    said = says(text, [*wrong, right])
    near = None if overlap is None else _resembles(text, right, wrong, overlap)
    if right in said or near == "correct":
        return "correct"
    if is_degenerate(text):
        return "degenerate"
    if is_refusal(text, refusals):
        return "refusal"
    return "plausible" if said or near else "off_topic"


def answer_mix(kinds: Iterable[str]) -> dict[str, float]:
    """Share of each of ``ANSWER_KINDS``, in [0, 1].

    Raises:
        DataError: an unknown kind, or none at all.

    >>> answer_mix(["refusal", "refusal", "plausible", "correct"])
    {'correct': 0.25, 'plausible': 0.25, 'refusal': 0.5, 'off_topic': 0.0, 'degenerate': 0.0}
    """
    counts = Counter(kinds)
    unknown = [kind for kind in counts if kind not in ANSWER_KINDS]
    if unknown or not counts:
        raise DataError(f"kinds must be at least one of {', '.join(ANSWER_KINDS)}; found {unknown[0] if unknown else 'none'}.")
    return {kind: counts[kind] / counts.total() for kind in ANSWER_KINDS}
