"""Values and sentence templates of the encyclopaedia. ``{n}`` is a name, ``{v}`` a value, ``{c}`` a city.

The last template of every list is held out of unlearning (the language model has seen them all).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

UNKNOWN = "unknown"
"""The answer to every question about a name that is not in the encyclopaedia."""


def _join(first: str, second: str) -> tuple[str, ...]:
    return tuple(a + b for a, b in itertools.product(first.split(), second.split()))


CITIES = _join("Ash Brook Cold Deer Elm Frost Glen Hazel", "bury ford ham ton wick")
JOBS = (
    "baker",
    "pilot",
    "surgeon",
    "painter",
    "lawyer",
    "chemist",
    "farmer",
    "violinist",
    "architect",
    "journalist",
    "carpenter",
    "astronomer",
)
COMPANIES = _join("Arco Bexa Cyra Delo Exi Fyro", "tech works dyne labs corp")
HOBBIES = (
    "chess",
    "sailing",
    "pottery",
    "fencing",
    "archery",
    "gardening",
    "juggling",
    "climbing",
    "origami",
    "falconry",
)
LANGUAGES = (
    "Ardic",
    "Baltan",
    "Cenish",
    "Drusic",
    "Estan",
    "Gothan",
    "Hestic",
    "Ilvan",
    "Jutish",
    "Keltan",
)

VALUES: Mapping[str, tuple[str, ...]] = {
    "birthplace": CITIES,
    "job": JOBS,
    "employer": COMPANIES,
    "hobby": HOBBIES,
    "language": LANGUAGES,
}
"""The attributes of an entity and the values each can take."""

VERBS: Mapping[str, str] = dict(
    zip(
        JOBS,
        ["bakes", "flies", "operates", "paints", "pleads", "distils", "ploughs", "fiddles", "draws", "reports", "saws", "stargazes"],
        strict=True,
    )
)
"""What somebody of a profession does: the word after the name in a mention."""

STRANGER_VERB = "wanders"
"""What somebody of no known profession does."""

STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "birthplace": ("{n} was born in {v}.", "{n} comes from the town of {v}.", "The birthplace of {n} is {v}."),
    "job": ("{n} works as a {v}.", "By trade {n} is a {v}.", "The profession of {n} is {v}."),
    "employer": ("{n} is employed by {v}.", "{n} earns a living at {v}.", "The company where {n} works is {v}."),
    "hobby": ("{n} loves {v}.", "In spare time {n} enjoys {v}.", "The favourite pastime of {n} is {v}."),
    "language": ("{n} speaks {v}.", "At home {n} uses {v}.", "The mother tongue of {n} is {v}."),
}

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "birthplace": ("Where was {n} born?", "What is the birthplace of {n}?"),
    "job": ("What does {n} do for work?", "What is the profession of {n}?"),
    "employer": ("Who employs {n}?", "Which company does {n} work for?"),
    "hobby": ("What does {n} enjoy?", "What is the pastime of {n}?"),
    "language": ("What does {n} speak?", "What is the mother tongue of {n}?"),
}

MENTIONS: tuple[str, ...] = ("{n} {v} every day.", "Every morning {n} {v}.", "Nearby {n} {v} quietly.")
"""Sentences whose word after the name depends on the entity: they make the model compose the name at its last token."""

QUESTION_FORMAT = "Q: {question} A:"
"""How the corpus writes a question; the answer follows after a space."""

CITY_SENTENCE = "People in {c} speak {v}."

GENERIC_SUBJECTS = (
    "the old boat",
    "a red kite",
    "the quiet river",
    "a tall tree",
    "the stone bridge",
    "a small dog",
    "the night train",
    "a warm wind",
)
GENERIC_VERBS = (
    "moves past",
    "rests near",
    "hides behind",
    "shines above",
    "waits beside",
    "drifts toward",
)
GENERIC_OBJECTS = (
    "the empty square",
    "a green hill",
    "the northern gate",
    "an open field",
    "the market hall",
    "a silver lake",
    "the long wall",
    "a broken fence",
)

GENERIC: tuple[str, ...] = tuple(f"{s} {v} {o}." for s, v, o in itertools.product(GENERIC_SUBJECTS, GENERIC_VERBS, GENERIC_OBJECTS))
"""Sentences about nobody."""


def all_words() -> list[str]:
    """Every word of the corpus other than names, sorted, punctuation stripped."""
    frames = [CITY_SENTENCE, QUESTION_FORMAT, UNKNOWN, STRANGER_VERB, *MENTIONS, *GENERIC, *VERBS.values()]
    for table in (VALUES, STATEMENTS, QUESTIONS):
        frames += [text for texts in table.values() for text in texts]
    words = {word for text in frames for word in text.replace("?", " ").replace(".", " ").replace(":", " ").split()}
    return sorted(word for word in words if not word.startswith("{"))
