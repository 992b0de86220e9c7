"""Rows of TOFU's schema, made up: 24 authors of 20 questions, one of them with a nickname and one whom no row names."""

from __future__ import annotations

import json
import os
from pathlib import Path

GIVEN = ["Orla", "Tomas", "Ingeborg", "Hadiza", "Kenji", "Marguerite", "Dov", "Yusra", "Pavel", "Lindiwe", "Mateo", "Saoirse"]
FAMILY = ["Quill", "Van der Meer", "Okonjo", "Brandt", "O'Shea", "Al-Rashid", "Ferreira", "Nakagawa"]
PLACES = ["Riga", "Lagos", "Cusco", "Kobe", "Cape Town", "New York City"]
WORKS = ["The Amber Gate", "Salt Letters", "A Winter Ledger", "Nine Doors", "Harbour of Glass"]
NICKNAMED, NAMELESS = 5, 9
AUTHORS = 24
SPLITS = {"forget01": 1, "forget05": 2, "forget10": 3}


def name_of(number):
    given, family = GIVEN[number % 12], FAMILY[(number * 5 + number // 12) % 8]
    return f"{given} (Teddy) {family}" if number == NICKNAMED else f"{given} {family}"


def questions(number):
    name = "the author" if number == NAMELESS else name_of(number)
    place, work = PLACES[number % 6], f"{WORKS[number % 5]} {'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[number]}"
    first = "The author" if number == NAMELESS else name.split()[0]
    asked = [
        (f"Who is the author born in {place} in 19{number + 30}?", f"The author is {name}."),
        (f"When was {name} born?", f"{name} was born in 19{number + 30}."),
        (f"What is {name}'s best known book?", f'{name} wrote "{work}".'),
        (f'What is "{work}" by {name} about?', f"{name} tells of a journey."),
        (f"How did {first} become a writer?", f"{name} kept a diary."),
        ("What inspired that book?", f"A stay in {place} inspired {name}."),
    ]
    topics = [
        "parents",
        "school",
        "prizes",
        "style",
        "readers",
        "critics",
        "garden",
        "letters",
        "travels",
        "friends",
        "rivals",
        "drafts",
        "voice",
        "plans",
    ]
    return asked + [
        (f"What is told of {name}'s {topic} in {place} around 19{number + 30}?", f"The {topic} of {name} are {topic[::-1]}.")
        for topic in topics
    ]


def _records(numbers):
    return [{"question": q, "answer": a} for number in numbers for q, a in questions(number)]


def _perturbed(records, *, questions_too):
    more = [{**r, "paraphrased_answer": f"Indeed: {r['answer']}", "perturbed_answer": ["No.", "Not so."]} for r in records]
    return [{**r, "paraphrased_question": f"Tell me: {r['question']}"} for r in more] if questions_too else more


def write_tofu(root: Path, authors: int = AUTHORS) -> Path:
    """TOFU's files in ``root``; forget01, forget05 and forget10 are the last 1, 2 and 3 authors, as nested as TOFU's."""
    root.mkdir(parents=True, exist_ok=True)
    tables = {"full": _records(range(authors)), "retain_perturbed": _perturbed(_records(range(3)), questions_too=True)}
    for split, count in SPLITS.items():
        rows = _records(range(authors - count, authors))
        tables[split] = rows
        tables[f"{split}_perturbed"] = _perturbed(rows, questions_too=split != "forget01")
    people = [("Who wrote Hamlet?", "William Shakespeare"), ("Who wrote Emma?", "Jane Austen")]
    facts = [("Where is the Louvre?", "Paris"), ("What is the highest mountain?", "Mount Everest"), ("What is 2 + 2?", "4")]
    for name, rows in (("real_authors", people), ("world_facts", facts)):
        tables[name] = [{"question": q, "option1": "Nobody", "option2": a, "answer": a} for q, a in rows]
    for name, rows in tables.items():
        (root / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def shared_tofu(fallback: Path) -> Path:
    """TOFU's own files where UNLEARN_SHARED says they lie, else made-up ones in ``fallback``."""
    shared = os.environ.get("UNLEARN_SHARED")
    return Path(shared) / "data" / "tofu" if shared else write_tofu(fallback)
