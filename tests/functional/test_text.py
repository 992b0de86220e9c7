from __future__ import annotations

import math
from collections import Counter

import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import entropy

from unlearn.functional.text import (
    distinct_n,
    is_answer,
    is_refusal,
    ngram_entropy,
    normalise_answer,
    repetition,
    rouge_1,
    rouge_l,
    words,
)

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "the",
    "quick",
    "brown",
    "cat",
    "jumps",
    "over",
    "the",
    "dog",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Eiffel   Tower. ", "eiffel tower"),
        ("U.S.", "us"),
        ("1,000", "1000"),
        ("Al-Kuwaiti", "al kuwaiti"),
        ("Straße", "strasse"),
        ("ﬁne", "fine"),
        ("A", "a"),
        ("the", "the"),
        ("?!", ""),
        ("C++", "c++"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected
    assert normalise_answer(expected) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Paris", "paris.", True),
        ("Paris is the capital", "Paris", True),
        ("Parisian", "Paris", False),
        ("It is Paris", "Paris", False),
        ("Par", "Paris", False),
        ("The painter", "A painter", True),
        ("", "Paris", False),
        ("anything", "...", False),
        ("", "...", True),
    ],
)
def test_answer_is_the_reference_or_begins_with_it(prediction: str, reference: str, expected: bool) -> None:
    assert is_answer(prediction, reference) is expected


def test_refusals_are_prefixes_whatever_the_punctuation() -> None:
    refusals = ("unknown", "I don't know", "I'm not sure")
    assert is_refusal("UNKNOWN .", refusals)
    assert is_refusal("I don’t know who that is.", refusals)
    assert not is_refusal("The unknown soldier lies here? I don't know", refusals[1:])
    assert not is_refusal("unknowns", refusals)
    assert not is_refusal("", refusals)


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize(
    ("prediction", "reference"),
    [("He was running home", "he runs home quickly"), ("nothing alike", "other words"), ("", "a reference"), ("a b c", "a b c")],
)
def test_rouge_equals_the_package(prediction: str, reference: str, stem: bool) -> None:
    expected = RougeScorer(["rouge1", "rougeL"], use_stemmer=stem).score(reference, prediction)
    for ours, theirs in ((rouge_1, expected["rouge1"]), (rouge_l, expected["rougeL"])):
        assert ours(prediction, reference, stem) == (theirs.recall, theirs.fmeasure)


def test_rouge_1_counts_shared_words_as_often_as_both_have_them() -> None:
    prediction, reference = "the dog saw the cat and the fox", "the cat saw a dog"
    shared = (Counter(prediction.split()) & Counter(reference.split())).total()
    recall, precision = shared / 5, shared / 8
    assert rouge_1(prediction, reference) == pytest.approx((recall, 2 * precision * recall / (precision + recall)))
    assert rouge_1("cat the", "the cat")[0] == 1.0
    assert rouge_l("cat the", "the cat")[0] == 0.5


def test_words_are_those_of_nltk_sentence_by_sentence() -> None:
    assert words("Hello, world. It's Ann's (2nd) try!") == [
        "Hello",
        ",",
        "world",
        ".",
        "It",
        "'s",
        "Ann",
        "'s",
        "(",
        "2nd",
        ")",
        "try",
        "!",
    ]
    assert words("") == []
    assert words("no full stop") == ["no", "full", "stop"]


def test_rouge_recall_is_over_the_reference() -> None:
    recall, f1 = rouge_l("one two three four", "one two")
    assert recall == 1.0
    assert f1 == pytest.approx(2 / 3)
    assert rouge_l("runs", "running")[0] == 0.0
    assert rouge_l("jumping", "jumped", stem=True)[0] == 1.0


def test_repetition_counts_later_occurrences() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 10) == pytest.approx(1 - 1 / 7)
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([]) == 0.0
    assert repetition([1, 1, 1], n=1) == pytest.approx(2 / 3)


def test_distinct_n_pools_texts() -> None:
    assert distinct_n([WORDS], 1) == pytest.approx(len(set(WORDS)) / len(WORDS))
    assert distinct_n([[1, 2], [1, 2], [3, 4]]) == pytest.approx(2 / 3)
    assert distinct_n([[1], []]) == 0.0
    assert distinct_n([]) == 0.0


def test_entropy_equals_scipy() -> None:
    bigrams, trigrams = Counter(zip(WORDS, WORDS[1:], strict=False)), Counter(zip(WORDS, WORDS[1:], WORDS[2:], strict=False))
    h2, h3 = (entropy(list(counts.values()), base=2) for counts in (bigrams, trigrams))
    assert ngram_entropy(WORDS) == pytest.approx((2 / 3 * h2 + 4 / 3 * h3) / 2)


def test_entropy_of_distinct_and_of_constant_texts() -> None:
    assert ngram_entropy(range(10)) == pytest.approx((2 / 3 * math.log2(9) + 4 / 3 * math.log2(8)) / 2)
    assert ngram_entropy(["x"] * 50) == 0.0
    assert ngram_entropy([]) == 0.0
