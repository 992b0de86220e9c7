"""Generated answers: do they say the right thing, and are they still language?"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any

ARTICLES = frozenset({"a", "an", "the"})
"""Words that ``normalise_answer`` leaves out."""


def _plain(character: str) -> str:
    """Dashes and slashes separate words; other punctuation vanishes."""
    category = unicodedata.category(character)
    if category == "Pd" or character == "/":
        return " "
    return "" if category.startswith("P") else character


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles (unless nothing else is left), single spaces.

    >>> normalise_answer("The  Al-Kuwaiti prize, of course!")
    'al kuwaiti prize of course'
    >>> normalise_answer("I don’t know.") == normalise_answer("I don't know")
    True
    """
    words = "".join(map(_plain, unicodedata.normalize("NFKC", text).casefold())).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def _begins_with(text: str, start: str) -> bool:
    """Whether normalised ``text`` is ``start`` or goes on after it with a new word; nothing but nothing begins with nothing."""
    return text == start or (start != "" and text.startswith(f"{start} "))


def is_answer(prediction: str, reference: str) -> bool:
    """Whether the prediction is the reference, or begins with it, after ``normalise_answer``.

    >>> is_answer("Paris, the capital of France.", "paris"), is_answer("Parisian", "Paris")
    (True, False)
    """
    return _begins_with(normalise_answer(prediction), normalise_answer(reference))


def is_refusal(prediction: str, refusals: Iterable[str]) -> bool:
    """Whether the prediction begins with one of ``refusals``, after ``normalise_answer``.

    >>> is_refusal("I don't know that, sorry.", ["unknown", "I don't know"])
    True
    """
    text = normalise_answer(prediction)
    return any(_begins_with(text, normalise_answer(refusal)) for refusal in refusals)


@cache
def _scorer(kind: str, stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=stem)


def _rouge(prediction: str, reference: str, kind: str, stem: bool) -> tuple[float, float]:
    score = _scorer(kind, stem).score(reference, prediction)[kind]
    return float(score.recall), float(score.fmeasure)


def rouge_1(prediction: str, reference: str, stem: bool = False) -> tuple[float, float]:
    """``(recall, F1)`` of shared words whatever their order, each in [0, 1] (Lin 2004; package rouge_score); words as in ``rouge_l``.

    >>> recall, f1 = rouge_1("mat on the cat", "the cat sat on the mat")
    >>> round(recall, 4), round(f1, 4)
    (0.6667, 0.8)
    """
    return _rouge(prediction, reference, "rouge1", stem)


def rouge_l(prediction: str, reference: str, stem: bool = False) -> tuple[float, float]:
    """``(recall, F1)`` of the longest common subsequence of words, each in [0, 1] (Lin 2004; package rouge_score).

    Benchmarks differ: RWKU and MUSE do not stem, open-unlearning does. Letters outside a-z and digits separate words.

    >>> recall, f1 = rouge_l("the cat sat", "the cat sat on the mat")
    >>> round(recall, 4), round(f1, 4)
    (0.5, 0.6667)
    """
    return _rouge(prediction, reference, "rougeL", stem)


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def words(text: str) -> list[str]:
    """Words and punctuation marks as NLTK's word_tokenize gives them; only that sentences end at ``.``, ``!`` or ``?`` and a space.

    >>> words("It isn't so. Is it?")
    ['It', 'is', "n't", 'so', '.', 'Is', 'it', '?']
    """
    return [word for sentence in _SENTENCE_END.split(text) for word in _tokenizer().tokenize(sentence)]


@cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _ngrams(tokens: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of a text's n-grams that occurred in it before: ``1 - distinct / all``, in [0, 1); 0 for texts shorter than n.

    >>> repetition([1, 2, 1, 2, 1, 2, 1])
    0.5
    """
    counts = _ngrams(tokens, n)
    return 1 - len(counts) / counts.total() if counts else 0.0


def distinct_n(texts: Iterable[Sequence[Hashable]], n: int = 2) -> float:
    """Distinct n-grams over all n-grams of a set of texts, in [0, 1]; 0 when there is none (Li et al. 2016, arXiv 1510.03055).

    >>> distinct_n([[1, 2, 3], [1, 2, 4]], n=2)
    0.75
    """
    counts: Counter[tuple[Hashable, ...]] = Counter()
    for tokens in texts:
        counts.update(_ngrams(tokens, n))
    return len(counts) / counts.total() if counts else 0.0


def _entropy(counts: Counter[tuple[Hashable, ...]]) -> float:
    total = counts.total()
    return sum(-count / total * math.log2(count / total) for count in counts.values())


def ngram_entropy(tokens: Sequence[Hashable]) -> float:
    """Fluency entropy of one text in bits, >= 0 (RWKU, arXiv 2406.10890; average it over texts): ``(2/3 H_2 + 4/3 H_3) / 2``.

    H_n is the entropy of the text's n-gram frequencies. Low: repetitive or short. RWKU prints 100 times this.

    >>> round(ngram_entropy([1, 2, 3, 4, 5]), 4)
    1.7233
    """
    return (2 / 3 * _entropy(_ngrams(tokens, 2)) + 4 / 3 * _entropy(_ngrams(tokens, 3))) / 2
