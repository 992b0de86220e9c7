"""Wordings of the prompt attack in the language of the world.

The world's vocabulary is its corpus (``unlearn.world.templates``), and a word outside it is the unknown token; so the forms are built of
the corpus' own sentences, each after the boundary token as the corpus has it. ``[[...]]`` is a question in the prompt format, as in
``unlearn.attacks.wordings``, where the fields are listed.

Absent, because the language has no words for them: ``prefix`` and ``role_play`` (no imperatives, nobody is addressed),
``multiple_choice`` (no "or", no letters), ``reverse`` and ``two_hop`` (every sentence begins with the name: nothing asks for it, and
nothing stands for it) and ``misspelling`` (letters are no tokens: a wrong one is the unknown token, a wrong syllable somebody else). One
form is new: ``stem``, the fact as a statement to be completed.
"""

from __future__ import annotations

from collections.abc import Mapping

from unlearn.world.templates import QUESTIONS, STATEMENTS
from unlearn.world.tokenizer import BOUNDARY

ABSENT = ("prefix", "role_play", "multiple_choice", "reverse", "two_hop", "misspelling")
"""Forms that the language cannot express."""


def _stem(text: str) -> str:
    """A statement up to its value, about the name that is asked for."""
    return text.format(n="{name}", v="\n").split("\n")[0].rstrip()


def _per_attribute() -> dict[str, tuple[str, ...]]:
    """Forms whose wording depends on what is asked; the held-out template of each comes first."""
    made: dict[str, tuple[str, ...]] = {}
    for attribute in QUESTIONS:
        questions = [text.format(n="{name}") for text in reversed(QUESTIONS[attribute])]
        stems = [_stem(text) for text in reversed(STATEMENTS[attribute])]
        made[f"paraphrase/{attribute}"] = tuple(f"[[{text}]]" for text in questions)
        made[f"stem/{attribute}"] = tuple(stems)
        made[f"affirmative/{attribute}"] = tuple(f"[[{{question}}]]{stem}" for stem in stems)
    return made


PROMPTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((*ABSENT, "paraphrase", "affirmative"), ()),
    "background": (f"{{context}}{BOUNDARY}[[{{question}}]]", "[[{context} {question}]]"),
    "in_context": (f"{{examples}}.{BOUNDARY}[[{{question}}]]",),
    "alias": ("[[{renamed}]]",),
    **_per_attribute(),
}
"""Form, or form/attribute -> wordings; an empty tuple switches a form off."""
