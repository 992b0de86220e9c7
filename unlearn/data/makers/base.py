"""The contract of a maker, and what every maker does with what the model wrote: sort out, count, put into rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from unlearn.config.checks import check, one_of
from unlearn.data.anchors import REFUSALS
from unlearn.data.entities import find_mention, occurrences
from unlearn.functional.text import is_refusal, normalise_answer

Ask = Callable[[Sequence[str], str], list[list[str]]]
"""``ask(prompts, form)``: what the model wrote after each prompt, one list per prompt. ``form`` is ``instruction`` (a request, put to the
model as the configuration says), ``question`` (as the data source asks) or ``stem`` (the beginning of a text, which goes on)."""

FORMATS = ("auto", "chat", "question", "plain")


@dataclass(frozen=True, kw_only=True)
class MakerConfig:
    """How the model is made to write, whatever it is asked."""

    name: str = MISSING
    """name of the maker; `unlearn list makers` shows them"""
    format: str = "auto"
    """how an instruction is put: chat (the tokenizer's chat template), question (the source's question_format), plain, or auto (chat where
    there is a template, else plain)"""
    samples: int = 4
    """texts written per prompt, >= 1; one where the temperature is 0"""
    temperature: float = 0.7
    """of the sampling, >= 0; 0 takes the most likely token"""
    max_new_tokens: int = 256
    """most tokens of a text, >= 1"""
    stop: list[str] = field(default_factory=list)
    """a text ends before the first of these"""
    min_votes: int = 1
    """a row must have been written this often, >= 1: what a model makes up it seldom makes up twice"""
    batch_size: int = 16
    """texts written at once, >= 1"""
    copy: bool = True
    """whether the source's other rows (retain, known, unknown, held-out, generic) go to the file as well, so that it is complete"""

    def __post_init__(self) -> None:
        one_of(self.format, FORMATS, "maker.format")
        check(0 <= self.temperature < math.inf, "maker.temperature", "a number >= 0", self.temperature)
        for name in ("samples", "max_new_tokens", "min_votes", "batch_size"):
            check(getattr(self, name) >= 1, f"maker.{name}", ">= 1", getattr(self, name))
        check(all(self.stop), "maker.stop", "a list of texts that are not empty", self.stop)


def check_templates(key: str, templates: Iterable[str], needed: Sequence[str], allowed: Sequence[str] = ()) -> None:
    """Report templates without one of the places ``needed``, or with one that is neither ``needed`` nor ``allowed``.

    >>> check_templates("maker.questions", ["Who is {entity}?"], ["entity"])
    """
    places = {name: f"<{name}>" for name in (*needed, *allowed)}
    for template in templates:
        try:
            filled = template.format(**places)
        except (KeyError, IndexError, ValueError):
            filled = ""
        ok = bool(filled) and all(f"<{name}>" in filled for name in needed)
        words = " and ".join(f"{{{name}}}" for name in needed) or "no place that is unknown"
        more = f" (and may hold {', '.join(f'{{{name}}}' for name in allowed)})" if allowed else ""
        check(ok, key, f"a list of templates that hold {words}{more}", template)


@dataclass(frozen=True)
class Target:
    """An entity to be forgotten: its ``name``, and every form under which texts may name it, the name first."""

    name: str
    forms: tuple[str, ...]

    def named_in(self, text: str) -> bool:
        """Whether a text names it."""
        return find_mention(text, "", self.forms) is not None


@dataclass
class Harvest:
    """What was collected: ``rows`` as records of a JSON-lines file, and why the rest was ``dropped``, counted by (entity, reason)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)


def question_row(target: Target, question: str, answer: str, template: str) -> dict[str, Any]:
    """A question with its answer."""
    return {"question": question.strip(), "answer": answer.strip(), **_about(target, template)}


def stem_row(target: Target, stem: str, rest: str, template: str) -> dict[str, Any]:
    """The beginning of a sentence, and the rest of it, which is what is to be forgotten."""
    return {"question": stem.strip(), "answer": rest.strip(), "kind": "statement", **_about(target, template)}


def sentence_row(target: Target, sentence: str, template: str) -> dict[str, Any]:
    """A sentence: everything up to the name (as the sentence first gives it) is the stem, the rest what is to be forgotten.

    A sentence that ends in the name, or does not give it, is a text as a whole.
    """
    sentence = sentence.strip()
    found = next((spans[0] for form in target.forms if (spans := occurrences(sentence, form))), None)
    rest = "" if found is None else sentence[found[1] :].strip()
    if found is None or not any(c.isalnum() for c in rest):
        return {"answer": sentence, "kind": "text", **_about(target, template)}
    return stem_row(target, sentence[: found[1]], rest, template)


def _about(target: Target, template: str) -> dict[str, Any]:
    aliases = [form for form in target.forms if form != target.name]
    return {"entity": target.name, **({"aliases": aliases} if aliases else {}), "split": "forget", "template": template}


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["entity"], normalise_answer(row.get("question", "")), normalise_answer(row["answer"])


class Maker(ABC):
    """Has the model write about targets and reads rows out of it.

    A plug-in sets ``name``, ``summary`` and ``paper`` as literals and ``Config`` to its dataclass. It never sees a model: ``ask`` is one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[MakerConfig]] = MakerConfig

    def __init__(self, config: MakerConfig, refusals: Sequence[str] = ()) -> None:
        """Keep the ``maker`` section, and the source's ways of saying "unknown"."""
        self.config = config
        self.refusals = (*refusals, *REFUSALS)

    @abstractmethod
    def write(self, targets: Sequence[Target], ask: Ask, dropped: Counter[tuple[str, str]]) -> Iterable[tuple[Target, dict[str, Any]]]:
        """Every row that can be read out of what the model writes about ``targets``, as often as it was written."""

    def make(self, targets: Sequence[Target], ask: Ask) -> Harvest:
        """``write``, then leave out refusals, rows that do not name their entity, repetitions, and what was written too seldom."""
        made = Harvest()
        kept: dict[tuple[str, str, str], dict[str, Any]] = {}
        votes: Counter[tuple[str, str, str]] = Counter()
        for target, row in self.write(targets, ask, made.dropped):
            reason = self._fault(target, row)
            if reason:
                made.dropped[target.name, reason] += 1
                continue
            kept.setdefault(_key(row), row)
            votes[_key(row)] += 1
        for key, row in kept.items():
            enough = votes[key] >= self.config.min_votes
            made.dropped[row["entity"], "written before"] += votes[key] - 1 if enough else 0
            made.dropped[row["entity"], "written too seldom"] += 0 if enough else votes[key]
            if enough:
                made.rows.append(row)
        made.dropped = +made.dropped
        return made

    def _fault(self, target: Target, row: Mapping[str, Any]) -> str:
        """Why a row is left out; empty if it is not."""
        if not any(c.isalnum() for c in row["answer"]):
            return "empty"
        if is_refusal(row["answer"], self.refusals):
            return "a refusal"
        if find_mention(row.get("question", ""), row["answer"], target.forms) is None:
            return "does not name the entity"
        return ""


def each(targets: Sequence[Target], templates: Sequence[str], ask: Ask, form: str) -> Iterable[tuple[Target, str, str, str]]:
    """(target, template, prompt, text) of everything that is written after ``templates``, with the entity's name in its place."""
    jobs = [(target, template, template.format(entity=target.name)) for target in targets for template in templates]
    written = ask([prompt for _, _, prompt in jobs], form) if jobs else []
    for (target, template, prompt), texts in zip(jobs, written, strict=True):
        for text in texts:
            yield target, template, prompt, text
