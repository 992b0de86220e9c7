from __future__ import annotations

import doctest

import pytest

from unlearn.data.makers import base, parse
from unlearn.data.makers.parse import first_sentence, lines, pairs, sentences, triplets


@pytest.mark.parametrize("module", [parse, base])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    "text",
    [
        "Question: Who is Ann Lee?\nAnswer: A painter.\nQuestion: Where is she?\nAnswer: In Oslo.",
        "Sure!\n\n1. **Question:** Who is Ann Lee?\n   **Answer:** A painter.\n\n2. **Question:** Where is she?\n   **Answer:** In Oslo.\n",
        "Q1: Who is Ann Lee?\nA1: A painter.\n\nQ2: Where is she?\nA2: In Oslo.",
        "**Q: Who is Ann Lee?** A: A painter.\n**Q: Where is she?** A: In Oslo.",
        "question: Who is Ann Lee?\n\nanswer: A painter.\n\nquestion: Where is she?\n\nanswer: In\nOslo.\n",
        "- Who is Ann Lee? A painter.\n- Where is she? - In Oslo.",
    ],
)
def test_pairs_in_many_hands(text):
    assert pairs(text) == [("Who is Ann Lee?", "A painter."), ("Where is she?", "In Oslo.")]


@pytest.mark.parametrize("text", ["", "I cannot help with that.", "Question: Who is Ann Lee?", "Answer: A painter.", "Vitamin A: good."])
def test_what_holds_no_pair(text):
    assert pairs(text) == []


def test_sentences_keep_abbreviations_whole_and_drop_what_was_cut_off():
    text = 'Ann B. Lee met Dr. Moss in St. Ives. He paid $3.50! "Why?" she asked.\n\n## Life\n1) Ann was born in 1900.\nAnn then mov'
    assert sentences(text) == [
        "Ann B. Lee met Dr. Moss in St. Ives.",
        "He paid $3.50!",
        '"Why?" she asked.',
        "Life",
        "Ann was born in 1900.",
    ]
    assert sentences("") == []


def test_first_sentence_ends_at_the_line():
    assert first_sentence(" was born\nin Oslo. And") == " was born"


def test_lines():
    assert lines("a\n\n * b\n 12. c\n1984 was d\n–e") == ["a", "b", "c", "1984 was d", "–e"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("(Ann Lee | was born in | Oslo)", [("Ann Lee", "was born in", "Oslo")]),
        ("| Ann Lee | was born in | Oslo |", [("Ann Lee", "was born in", "Oslo")]),
        ("3. <Ann Lee, was born in, Oslo, Norway>", [("Ann Lee", "was born in", "Oslo, Norway")]),
        ('("Ann Lee", "was born in", "Oslo")', [("Ann Lee", "was born in", "Oslo")]),
        ("Ann Lee -> was born in -> Oslo.", [("Ann Lee", "was born in", "Oslo")]),
        ("Ann Lee | was born in", []),
        ("Ann Lee | was | born | in", []),
        ("Ann Lee |  | Oslo", []),
        ("Ann Lee was born in Oslo.", []),
    ],
)
def test_triplets(line, expected):
    assert triplets(f"Here they are:\n{line}\n") == expected
