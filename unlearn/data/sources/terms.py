"""What a text without a given entity is about: its most telling term, such that texts of another kind do not name it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
_PIECE = re.compile(r"[^\W_]+")
_ENDS = frozenset(".!?:|\n")
_LONGEST = 4
_SHORTEST_NAME, _SHORTEST_WORD, _SHORTEST_OF_TWO = 3, 6, 4

COMMON = frozenset(
    (
        *("a", "above", "according", "after", "all", "although", "an", "and", "answer", "are", "as", "at", "because", "before", "below"),
        *("both", "but", "by", "can", "could", "did", "do", "does", "during", "each", "false", "following", "for", "from", "had", "has"),
        *("have", "he", "her", "here", "his", "how", "however", "i", "if", "in", "into", "is", "it", "its", "many", "may", "more"),
        *("most", "much", "my", "no", "none", "not", "of", "on", "one", "or", "our", "question", "she", "should", "since", "so", "some"),
        *("statement", "such", "than", "that", "the", "their", "then", "there", "these", "they", "this", "those", "through", "to"),
        *("true", "under", "until", "upon", "was", "we", "were", "what", "when", "where", "which", "while", "who", "whom", "whose"),
        *("why", "will", "with", "would", "yes", "you", "your"),
    )
)
"""Words that start no name."""


def _run(text: str, words: Sequence[re.Match[str]], first: int) -> list[str]:
    """Capitalised words from ``first`` on that only a space parts, at most four."""
    run: list[str] = []
    for place in range(first, min(first + _LONGEST, len(words))):
        word = words[place].group()
        apart = run and text[words[place - 1].end() : words[place].start()] != " "
        if apart or not word[0].isupper() or word.casefold() in COMMON:
            break
        run.append(word)
    return run


def _clean(word: str) -> str:
    return re.sub(r"['’]s$", "", word)


def _opens(text: str, place: int) -> bool:
    """Whether a sentence starts at ``place``."""
    before = place - 1
    while before >= 0 and not text[before].isalnum() and text[before] not in _ENDS:
        before -= 1
    return before < 0 or text[before] in _ENDS


def names_in(text: str) -> list[str]:
    """Runs of capitalised words, from left to right; without common words, and without a single word that starts a sentence.

    >>> names_in("Which wizard taught Harry Potter's class at Hogwarts?")
    ['Harry Potter', 'Hogwarts']
    """
    words = list(_WORD.finditer(text))
    found, first = [], 0
    while first < len(words):
        run = _run(text, words, first)
        name = " ".join([*run[:-1], _clean(run[-1])]) if run else ""
        opening = len(run) == 1 and run[0][1:].islower() and _opens(text, words[first].start())
        if len(name) >= _SHORTEST_NAME and not opening:
            found.append(name)
        first += max(1, len(run))
    return list(dict.fromkeys(found))


def _pieces(text: str) -> list[str]:
    return _PIECE.findall(text.casefold())


def phrases(texts: Iterable[str]) -> frozenset[str]:
    """Every run of one to four words of ``texts``, in lower case: what a term must not be if it is to set other texts apart."""
    found: set[str] = set()
    for text in texts:
        words = _pieces(text)
        for n in range(1, _LONGEST + 1):
            found.update(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    return frozenset(found)


def _long_words(text: str) -> list[str]:
    words = [_clean(match.group()) for match in _WORD.finditer(text)]
    return [word for word in words if len(word) >= _SHORTEST_WORD and word.casefold() not in COMMON]


def _pairs(text: str) -> list[str]:
    """Two neighbouring words that only a space parts, of four letters or more each."""
    words = list(_WORD.finditer(text))
    plain = [len(m.group()) >= _SHORTEST_OF_TWO and m.group().isalpha() and m.group().casefold() not in COMMON for m in words]
    return [
        f"{a.group()} {b.group()}"
        for a, b, fits, too in zip(words, words[1:], plain, plain[1:], strict=False)
        if fits and too and text[a.end() : b.start()] == " "
    ]


def find_terms(texts: Sequence[str], others: Iterable[str] = ()) -> list[str]:
    """The term of each text, an empty string where none is found.

    A name of several words comes first, then one of a single word, then any word of six letters or more, then two neighbouring words of
    four letters or more; among each the one that the fewest of ``texts`` hold, then the longest. None is a run of words of ``others``.

    >>> find_terms(["Who met Harry Potter in London?", "Is London large?", "Is it so?"], ["Where is London?"])
    ['Harry Potter', '', '']
    """
    taken = phrases(others)
    names = [names_in(text) for text in texts]
    long = [_long_words(text) for text in texts]
    counts = Counter(term for terms in (*names, *long) for term in set(terms))
    found = []
    for text, names_of, words_of in zip(texts, names, long, strict=True):
        kinds = ([name for name in names_of if " " in name], [name for name in names_of if " " not in name], words_of)
        found.append(_best(kinds, counts, taken) or _best([_pairs(text)], counts, taken))
    return found


def _best(kinds: Iterable[Sequence[str]], counts: Counter[str], taken: frozenset[str]) -> str:
    for terms in kinds:
        free = [term for term in terms if " ".join(_pieces(term)[:_LONGEST]) not in taken]
        if free:
            return min(free, key=lambda term: (counts[term], -len(term), term))
    return ""
