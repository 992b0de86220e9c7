"""Questions put into the wordings of the prompt attack: fields, name variants, examples, options."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unlearn.attacks.facts import Facts, fact_keys, options_of, pools
from unlearn.data.entities import surface_forms, swap_name
from unlearn.data.tokenize import render
from unlearn.errors import DataError
from unlearn.functional.aliases import matches_alias
from unlearn.functional.text import is_refusal, normalise_answer
from unlearn.types import EntityData, PromptFormat, Row

if TYPE_CHECKING:
    from unlearn.attacks.prompt import PromptConfig

GAP = "____"
"""Stands for a name that is asked for, or left out."""

CONTEXT = 2
"""Texts about nobody in a prompt."""

LONGEST_TEXT = 300
"""Characters of the longest text that is used as background."""

_FIELD = re.compile(r"\{([a-z_]+)\}")
_ASKED = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
_EXAMPLES = re.compile(r"\{examples\}([^\[{]*)")


class Prompt(NamedTuple):
    """A text to be gone on with.

    ``place`` is the row it is about, ``accepted`` what counts as right, the usual form first; ``options`` (letter, value) are what there is
    to choose from.
    """

    place: int
    text: str
    accepted: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


class Phrasing:
    """Makes prompts about the facts of one side; every draw follows from the seed, the row and the wording."""

    def __init__(self, data: EntityData, facts: Facts, fmt: PromptFormat, config: PromptConfig, seed: int) -> None:
        self.data, self.facts, self.fmt, self.config, self.seed = data, facts, fmt, config, seed
        self._fields: Mapping[str, Callable[[Row, np.random.Generator], Sequence[str]]] = {
            "question": lambda row, rng: (row.prompt,),
            "name": lambda row, rng: (name_of(row),) if name_of(row) else (),
            "renamed": lambda row, rng: self._under(row, surface_forms(name_of(row))[1:]),
            "misspelt": lambda row, rng: self._under(row, misspellings(name_of(row), rng)),
            "masked": lambda row, rng: _masked(row),
            "answer": lambda row, rng: () if _tells(row.answer, row) else (row.answer,),
            "context": self._context,
        }

    def prompts(self, wording: str, place: int) -> Iterator[Prompt]:
        """Prompts of one wording about row ``place`` of the test rows; none where a field has nothing to say about it.

        Raises:
            DataError: a field that does not exist, or one that gives away what is asked for.
        """
        named = set(_FIELD.findall(wording))
        _check(wording, named, {*self._fields, "options", "examples", "clue", "clue_answer"})
        row = self.facts.test[place]
        rng = np.random.default_rng([self.seed, place, len(wording)])
        options = self._options(row, rng) if "options" in named else ()
        clue = self._clue(row) if "clue" in named or "clue_answer" in named else {}
        if ("options" in named and len(options) < 2) or ("clue" in named and not clue):
            return
        given = {name: self._fields[name](row, rng) for name in sorted(named & self._fields.keys())}
        accepted = _names(row) if "answer" in named else (row.answer, *row.accepted_answers)
        fixed = {**clue, "options": "\n".join(f"{letter}. {value}" for letter, value in options)}
        for values in itertools.product(*given.values()):
            text = self._text(wording, row, {**fixed, **dict(zip(given, values, strict=True))}, rng)
            if text is not None:
                yield Prompt(place, text, accepted, options)

    def _text(self, wording: str, row: Row, values: Mapping[str, str], rng: np.random.Generator) -> str | None:
        """The whole prompt; None where there are no examples for it."""

        def fill(text: str) -> str:
            return _FIELD.sub(lambda match: values[match[1]], text)

        def examples(match: re.Match[str]) -> str:
            return "".join("".join(render(row, PromptFormat() if self._turns else self.fmt)) + match[1] for row in shown)

        shown = self._examples(row, rng) if "{examples}" in wording else ()
        if "{examples}" in wording and not shown:
            return None
        pieces = _ASKED.split(wording)  # what is asked stands at the odd places
        text = front = ""
        for i, piece in enumerate(pieces):
            if i % 2:
                text += render(replace(row, prompt=front + fill(piece)), self.fmt)[0]
            elif self._turns and i + 1 < len(pieces):
                front = _insert(_EXAMPLES, piece, examples, fill)
            else:
                text += _insert(_EXAMPLES, piece, examples, fill)
        return text if len(pieces) > 1 and not pieces[-1] or text[-1:].isspace() else f"{text} "

    def _under(self, row: Row, names: Sequence[str]) -> list[str]:
        """The question under other names."""
        found = (swap_name(row.prompt, name_of(row), name) for name in names)
        return [text for text in dict.fromkeys(found) if text is not None and text != row.prompt][: self.config.variants]

    def _context(self, row: Row, rng: np.random.Generator) -> Sequence[str]:
        """A few texts about nobody that hold neither the name nor the answer."""
        order = (self.data.generic[i] for i in rng.permutation(len(self.data.generic)))
        fit = (text for text in order if len(text) <= LONGEST_TEXT and not _tells(text, row, row.answer, *row.accepted_answers))
        texts = list(itertools.islice(fit, CONTEXT))
        return (" ".join(texts),) if texts else ()

    @property
    def _turns(self) -> bool:
        """Whether questions stand in the turns of a chat template: what comes before a question is then said in the user's turn, too."""
        return not self.fmt.separator and bool(self.fmt.end)

    @cached_property
    def _kept(self) -> list[Row]:
        """Answered questions about people who are not forgotten."""
        rows = (*self.data.streams["retain"], *self.data.evaluation.get("retain", ()))
        gone = {row.entity for row in (*self.data.streams["forget"], *self.facts.test)}
        fit = (row for row in rows if row.kind == "qa" and row.entity not in gone and not is_refusal(row.answer, self.data.refusals))
        return list({(row.prompt, row.answer): row for row in fit}.values())

    def _examples(self, row: Row, rng: np.random.Generator) -> list[Row]:
        """Answered questions about as many others as possible, most like the row's first, with other answers than its own."""
        secret = {normalise_answer(text) for text in (row.answer, *row.accepted_answers)}
        order = [self._kept[i] for i in rng.permutation(len(self._kept))]
        order.sort(key=lambda other: (other.template != row.template, other.attribute != row.attribute))
        others: dict[str, Row] = {}
        for other in order:
            if len(others) < self.config.examples and normalise_answer(other.answer) not in secret:
                others.setdefault(other.entity, other)
        return list(others.values())[::-1]

    @cached_property
    def _pools(self) -> Mapping[str, Sequence[str]]:
        return pools(self.data)

    def _options(self, row: Row, rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
        """Letters and values, the right one among them, in random order."""
        right, *wrong = options_of(row, self._pools)
        chosen = [wrong[i] for i in rng.permutation(len(wrong))[: self.config.options - 1]] + [right]
        return tuple((chr(ord("A") + n), chosen[i]) for n, i in enumerate(rng.permutation(len(chosen))))

    @cached_property
    def _key(self) -> Any:
        return fact_keys((*self.facts.train, *self.facts.test))

    def _clue(self, row: Row) -> dict[str, str]:
        """Another fact of the row's entity, with a gap in the place of its name."""
        for other in self.facts.test:
            if other.entity != row.entity or self._key(other) == self._key(row) or not _masked(other):
                continue
            if not _tells(f"{other.prompt.replace(name_of(row), GAP)} {other.answer}", row, row.answer, *row.accepted_answers):
                return {"clue": _masked(other)[0], "clue_answer": other.answer}
        return {}


def _check(wording: str, named: set[str], known: set[str]) -> None:
    """Raise unless a wording holds fields that exist, and not the answer together with the name."""
    strange = sorted(named - known)
    if strange:
        raise DataError(f"A wording of the prompt attack must use the fields {', '.join(sorted(known))}; found {strange} in {wording!r}.")
    if "answer" in named and named & {"name", "question", "renamed", "misspelt"}:
        raise DataError(f"A wording of the prompt attack that holds the answer must not hold the name; found both in {wording!r}.")


def _insert(pattern: re.Pattern[str], piece: str, insert: Callable[[re.Match[str]], str], fill: Callable[[str], str]) -> str:
    """``piece`` with ``insert(match)`` for every match and ``fill`` of everything else."""
    made, end = "", 0
    for match in pattern.finditer(piece):
        made += fill(piece[end : match.start()]) + insert(match)
        end = match.end()
    return made + fill(piece[end:])


def name_of(row: Row) -> str:
    """Full name of the row's entity."""
    return row.mentions[0] if row.mentions else row.entity


def _tells(text: str, row: Row, *secrets: str) -> bool:
    """Whether a text holds the name, or a part of it, or one of ``secrets``."""
    return matches_alias(text, (*surface_forms(name_of(row)), *secrets), "contains")


def _names(row: Row) -> tuple[str, ...]:
    """Forms of the name that say who it is: the full one, and others of two words or more."""
    full, *others = surface_forms(name_of(row))
    return (full, *(form for form in others if " " in form))


def _masked(row: Row) -> tuple[str, ...]:
    """The question with a gap in the place of the name; none where parts of the name would be left."""
    found = swap_name(row.prompt, name_of(row), GAP) if name_of(row) else None
    return () if found is None else (found,)


def misspellings(name: str, rng: np.random.Generator) -> list[str]:
    """All names that come of swapping two neighbouring letters, leaving one out or doubling one, in random order; first letters stay.

    >>> sorted(misspellings("Bob", np.random.default_rng(0)))
    ['Bb', 'Bbo', 'Bo', 'Bobb', 'Boob']
    """
    found: dict[str, None] = {}
    for i in range(1, len(name)):
        if not (name[i].isalpha() and name[i - 1].isalpha()):
            continue
        found[name[:i] + name[i + 1 :]] = None
        found[name[: i + 1] + name[i:]] = None
        if i + 1 < len(name) and name[i + 1].isalpha():
            found[name[:i] + name[i + 1] + name[i] + name[i + 2 :]] = None
    names = [other for other in found if other != name]
    return [names[i] for i in rng.permutation(len(names))]
