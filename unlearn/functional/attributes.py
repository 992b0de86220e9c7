"""Does a text give the right value of an attribute? One rule per kind of value, after Ferrando et al. (arXiv 2411.14257) and their code.

Reconstruction of the rules: names may differ a little, years, lengths and heights by a fixed amount, populations by a share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher

from unlearn.errors import DataError
from unlearn.functional.text import normalise_answer

CLOSE = 90.0
"""Least likeness of a name, in percent (exclusive)."""

_NUMBER = re.compile(r"-?\d+(?:[, ]\d{3})*(?:\.\d+)?")
_SAME: Mapping[str, tuple[str, ...]] = {
    "united states of america": ("united states", "usa", "us", "america"),
    "united states": ("united states of america", "usa", "us", "america"),
    "peoples republic of china": ("china", "prc"),
    "united kingdom": ("uk", "great britain", "england", "scotland", "wales"),
}
"""Further names of countries, by normalised name."""


def numbers(text: str) -> list[float]:
    """Numbers in a text, from left to right; commas and spaces may group thousands.

    >>> numbers("about 12,500 people in 1987, at -3.5 m")
    [12500.0, 1987.0, -3.5]
    """
    return [float(re.sub(r"[, ]", "", found)) for found in _NUMBER.findall(text)]


def token_set_ratio(a: str, b: str) -> float:
    """Likeness of two texts as sets of words, in [0, 100]; 100 where the words of one are all in the other (the rule of fuzzywuzzy).

    >>> token_set_ratio("Lakers", "the Los Angeles Lakers"), round(token_set_ratio("Dirk Nowitzky", "Dirk Nowitzki"))
    (100.0, 92)
    """
    words = [set(normalise_answer(text).split()) for text in (a, b)]
    if not all(words):
        return 0.0
    shared = " ".join(sorted(words[0] & words[1]))
    with_rest = [f"{shared} {' '.join(sorted(own - other))}".strip() for own, other in (words, words[::-1])]
    pairs = [(with_rest[0], with_rest[1]), *(((shared, rest)) for rest in with_rest if shared)]
    return max(100 * SequenceMatcher(None, x, y, autojunk=False).ratio() for x, y in pairs)


def _name(text: str, answers: Sequence[str]) -> bool:
    said = normalise_answer(text)
    return any(token_set_ratio(said, form) > CLOSE for answer in answers for form in (answer, *_SAME.get(normalise_answer(answer), ())))


def _part(text: str, answers: Sequence[str]) -> bool:
    said = normalise_answer(text)
    return any(part in said for answer in answers if (part := normalise_answer(answer)))


def _near(amount: float, share: float = 0.0) -> Callable[[str, Sequence[str]], bool]:
    """Whether the first number of a text is within ``amount``, or within ``share`` of the right one."""

    def rule(text: str, answers: Sequence[str]) -> bool:
        said = numbers(text)[:1]
        right = [value for answer in answers for value in numbers(answer)[:1]]
        return any(abs(said[0] - value) <= max(amount, share * abs(value)) for value in right) if said else False

    return rule


def _coordinates(text: str, answers: Sequence[str]) -> bool:
    said = [abs(number) for number in numbers(text)][:2]
    right = [sorted(abs(number) for number in numbers(answer)[:2]) for answer in answers]
    return len(said) == 2 and any(
        len(pair) == 2 and all(abs(x - y) <= 1 for x, y in zip(sorted(said), pair, strict=True)) for pair in right
    )


RULES: Mapping[str, Callable[[str, Sequence[str]], bool]] = {
    "name": _name,
    "part": _part,
    "birth_year": _near(5),
    "year": _near(2),
    "minutes": _near(3),
    "metres": _near(20),
    "population": _near(0, 0.1),
    "coordinates": _coordinates,
}
"""By kind of value: a name; a word to be contained (genres); birth year, +-5; year, +-2; minutes, +-3; metres, +-20; a number of people,
within 10 %; a pair of degrees, each within 1, signs aside."""


def gives(text: str, answers: Sequence[str], rule: str = "name") -> bool:
    """Whether the first line of a text gives one of the right values.

    Args:
        text: what a model said.
        answers: right values.
        rule: kind of value, a key of ``RULES``.

    Raises:
        DataError: there is no such rule.

    >>> gives("Born in 1981.", ["1979"], "birth_year"), gives("Born in 1990.", ["1979"], "birth_year"), gives("in Riga, Latvia", ["Riga"])
    (True, False, True)
    """
    if rule not in RULES:
        raise DataError(f"rule must be one of {', '.join(RULES)}; found {rule!r}.")
    lines = text.strip().splitlines()
    return bool(lines) and RULES[rule](lines[0], answers)
