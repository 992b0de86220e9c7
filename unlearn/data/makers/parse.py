"""Reading lists, question-answer pairs, sentences and triplets out of what a model wrote. Plain strings in, plain strings out."""

from __future__ import annotations

import re

_BULLET = re.compile(r"^\s*(?:[-*•–>#]+|\(?\d{1,3}[.):]|\(?[a-z]\))\s+|^\s*#+\s*", re.IGNORECASE)
_NOT_THE_END = "".join(
    rf"(?<!{start})" for start in (r"[ .(][A-Z]\.", r"^[A-Z]\.", *(rf"\b{t}\." for t in ("Mr", "Ms", "Mrs", "Dr", "St", "No")))
)
_END = re.compile(rf"{_NOT_THE_END}(?<=[.!?])[\"”’)]?\s+(?=[\"“A-Z\d])")
_MARK = r"[\s*_#>-]*(?:\d{{1,3}}[.)]\s*)?[*_]*(?:{word}|{letter})\s*\d{{0,3}}\s*[*_]*\s*:[\s*_]*"
_QUESTION = _MARK.format(word="question", letter="q")
_ANSWER = _MARK.format(word="answer", letter="a")
_PAIR = re.compile(
    rf"(?:^|\n){_QUESTION}(?P<q>[^\n]*?)(?:\n+|\s+){_ANSWER}(?P<a>.*?)(?=\n\s*\n|\n{_QUESTION}|\Z)", re.IGNORECASE | re.DOTALL
)
_INLINE = re.compile(r"^(?P<q>[^?]{8,}\?)\s*[-–—:]?\s+(?P<a>\S.*)$")
_OPEN, _CLOSE = "([<{\"'“`", ")]>}\"'”`.,;"


def lines(text: str) -> list[str]:
    """Lines that are not blank, without bullets, numbers and emphasis.

    >>> lines("Facts:\\n 1. **Oslo** is old.\\n- It is cold.")
    ['Facts:', 'Oslo is old.', 'It is cold.']
    """
    bare = (_BULLET.sub("", line).replace("**", "").replace("__", "").strip() for line in text.splitlines())
    return [line for line in bare if line]


def pairs(text: str) -> list[tuple[str, str]]:
    """(question, answer) pairs: marked by ``Question:``/``Answer:`` or ``Q:``/``A:``, else lines of a question and what follows it.

    >>> pairs("Q1: Where is Oslo?\\nA1: Norway\\n\\n**Question:** Is it old?\\n**Answer:** Yes.")
    [('Where is Oslo?', 'Norway'), ('Is it old?', 'Yes.')]
    >>> pairs("1. Where is Oslo? In Norway.\\nThat is all.")
    [('Where is Oslo?', 'In Norway.')]
    """
    marked = [(m["q"].strip(" *_"), " ".join(m["a"].split()).strip(" *_")) for m in _PAIR.finditer(text)]
    if not marked:
        marked = [(m["q"], m["a"].strip()) for line in lines(text) if (m := _INLINE.match(line))]
    return [(q, a) for q, a in marked if q and a]


def sentences(text: str) -> list[str]:
    """Sentences, line by line; a last one that was cut off and headings that end in a colon are left out.

    >>> sentences("Here is more:\\n- J. K. Moss was born in Oslo. She met Dr. Roy!\\nShe then we")
    ['J. K. Moss was born in Oslo.', 'She met Dr. Roy!']
    """
    found = [part.strip() for line in lines(text) for part in _END.split(line) if part.strip()]
    if found and found[-1][-1] not in '.!?"”’)':
        found.pop()
    return [sentence for sentence in found if not sentence.endswith(":")]


def first_sentence(text: str) -> str:
    """What stands before the first line break or sentence end, its punctuation included.

    >>> first_sentence(" was born in Oslo. She then")
    ' was born in Oslo.'
    """
    line = text.split("\n", 1)[0]
    return _END.split(line, maxsplit=1)[0]


def _bare(part: str) -> str:
    return part.strip().strip(_OPEN + _CLOSE).strip()


def triplets(text: str) -> list[tuple[str, str, str]]:
    """(subject, relation, object), one to a line, parted by ``|``, tabs, ``;``, ``->`` or commas, with or without brackets.

    A line with other than three parts is passed over, except that with commas whatever follows the second belongs to the object.

    >>> triplets("1. (Ann Lee | was born in | Oslo)\\n- <Ann Lee; job; painter>\\nAnn Lee, lives in, Bergen, Norway\\nThat is it.")
    [('Ann Lee', 'was born in', 'Oslo'), ('Ann Lee', 'job', 'painter'), ('Ann Lee', 'lives in', 'Bergen, Norway')]
    """
    found = []
    for line in lines(text):
        separator = next((s for s in ("|", "\t", ";", "->", "→", ",") if line.count(s) >= 2), None)
        if separator is None:
            continue
        core = line.strip().strip("|").strip()
        parts = [_bare(part) for part in core.split(separator, 2 if separator == "," else -1)]
        if len(parts) == 3 and all(parts):
            found.append((parts[0], parts[1], parts[2]))
    return found
