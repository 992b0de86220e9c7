"""What kind of answer is it? Five kinds that can be told from text, for comparing how a model answers about a target and about strangers.

The mix of kinds on the target, set beside the mix on unknown entities (``unlearn.functional.statistics.total_variation``), measures
"treated like an unknown entity" by behaviour: refusing everything about the target when strangers get guesses is far off, and so is babble.
Words are what spaces part: languages written without spaces need another splitter first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from unlearn.errors import DataError
from unlearn.functional.statistics import total_variation
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


def _by_group(kinds: Sequence[str], groups: Sequence[Any]) -> np.ndarray:
    """Counts of each kind ``[groups, kinds]``, one line per entity."""
    if len(kinds) != len(groups) or not len(kinds):
        raise DataError(f"kinds and groups must have one entry per answer, and at least one; found {len(kinds)} and {len(groups)}.")
    names, group_N = np.unique(np.asarray(groups), return_inverse=True)
    kind_N = np.array([ANSWER_KINDS.index(kind) for kind in kinds])
    cells = np.bincount(group_N.reshape(-1) * len(ANSWER_KINDS) + kind_N, minlength=len(names) * len(ANSWER_KINDS))
    return cells.reshape(len(names), len(ANSWER_KINDS)).astype(np.float64)


def mix_permutation(
    kinds_a: Sequence[str], kinds_b: Sequence[str], groups_a: Sequence[Any], groups_b: Sequence[Any], n: int, seed: int
) -> tuple[float, float]:
    """Total variation distance between two mixes and its permutation p-value, permuting whole entities.

    Args:
        kinds_a: kinds of the answers on the one side, of ``ANSWER_KINDS``.
        kinds_b: kinds of the answers on the other side.
        groups_a: entity of each answer of ``kinds_a``.
        groups_b: entity of each answer of ``kinds_b``; an equal name on the other side is another entity.
        n: permutations, >= 1.
        seed: seed of the permutations.

    Returns:
        ``(distance, p)``: p = (1 + permutations at least as far apart) / (1 + n), in [1 / (1 + n), 1]; p is nan when a side has
        fewer than two entities.

    Raises:
        DataError: unequal lengths, or a side without answers.

    >>> mix_permutation(["refusal"] * 9, ["plausible"] * 9, range(9), range(9), n=99, seed=0)
    (1.0, 0.01)
    """
    answer_mix([*kinds_a, *kinds_b])
    a_GK, b_GK = _by_group(kinds_a, groups_a), _by_group(kinds_b, groups_b)
    observed = total_variation(Counter(kinds_a), Counter(kinds_b))
    if min(len(a_GK), len(b_GK)) < 2:
        return observed, float("nan")
    both_GK, rng = np.concatenate([a_GK, b_GK]), np.random.default_rng(seed)
    total_K, as_far = both_GK.sum(0), 0
    for _ in range(n):
        drawn_K = both_GK[rng.permutation(len(both_GK))[: len(a_GK)]].sum(0)
        other_K = total_K - drawn_K
        as_far += bool(np.abs(drawn_K / drawn_K.sum() - other_K / other_K.sum()).sum() / 2 >= observed - 1e-12)
    return observed, (1 + as_far) / (1 + n)
