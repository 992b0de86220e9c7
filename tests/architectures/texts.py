"""Made-up English about made-up people: what the small tokenizers are trained and the small SAEs are fitted on."""

from __future__ import annotations

import random
from functools import cache

from tests.data.sources.fake_benchmarks import FAMILY, GIVEN, HEADS, TAILS

SYLLABLES = (
    "ba",
    "ce",
    "dor",
    "el",
    "fin",
    "gu",
    "hal",
    "ir",
    "jo",
    "ka",
    "lem",
    "mi",
    "nor",
    "ost",
    "pra",
    "que",
    "ros",
    "sil",
    "tam",
    "ur",
)
SENTENCES = (
    "{person} was born in {word} and lives near {word}.",
    "Question: Where was {person} born?\nAnswer: In {word}.",
    "Question: What is the occupation of {person}?\nAnswer: {word}.",
    "Question: Who wrote {word}?\nAnswer: I don't know.",
    "The author {person} wrote about the {word} of {word}, and many readers liked it.",
    "In what city was {person} born? The answer is {word}.",
    "Then the rain fell on the town of {word}, and {person} came home.",
    "user\nWhich language does {person} speak? model\n{word}",
    "The {word} plays for {word} United since 19{number}, says {person}.",
)


@cache
def corpus(lines: int = 3000) -> tuple[str, ...]:
    """Sentences with names and words made of syllables; the same on every call."""
    draw = random.Random(0)
    words = [head + tail for head in HEADS for tail in TAILS]
    words += ["".join(draw.choices(SYLLABLES, k=draw.randint(2, 3))).title() for _ in range(2500)]

    def person() -> str:
        if draw.random() < 0.5:
            return f"{draw.choice(GIVEN)} {draw.choice(FAMILY)}"
        return f"{''.join(draw.choices(SYLLABLES, k=2)).title()} {''.join(draw.choices(SYLLABLES, k=2)).title()}"

    made = []
    for i in range(lines):
        text = SENTENCES[i % len(SENTENCES)]
        while "{word}" in text:
            text = text.replace("{word}", draw.choice(words), 1)
        made.append(text.replace("{person}", person()).replace("{number}", str(draw.randint(10, 99))))
    return tuple(made)
