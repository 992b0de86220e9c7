"""Which entities a model knows: the rule of Ferrando et al. (arXiv 2411.14257, section 3; thresholds from their code), and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlearn.data.records import read_records, text_problem
from unlearn.errors import DataError
from unlearn.functional.attributes import RULES, gives

LABELS: tuple[str, ...] = ("known", "between", "unknown")
"""``between`` entities are of neither kind and are left out."""

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A question about one attribute of an entity; ``reworded`` asks the same in other words, ``popularity`` grows with how well it is
    known (page views), ``rule`` says when an answer is right (``unlearn.functional.attributes``)."""

    entity: str
    attribute: str
    question: str
    answers: tuple[str, ...]
    reworded: str = ""
    rule: str = "name"
    popularity: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When an entity counts as known: ``samples`` answers are drawn for each attribute; an attribute is right if ``hits`` of them are; an
    entity is known if ``known`` attributes are right, unknown if none is, and neither otherwise."""

    samples: int = 10
    hits: int = 3
    known: int = 2
    temperature: float = 1.0
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("hits", 1), ("known", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise DataError(f"{name} must be >= {least}; found {getattr(self, name)}.")
        if self.hits > self.samples:
            raise DataError(f"hits must be at most the number of samples, {self.samples}; found {self.hits}.")
        if not self.temperature > 0:
            raise DataError(f"temperature must be > 0; found {self.temperature}.")

    def label(self, hits: Mapping[str, int]) -> str:
        """Label of an entity from the number of right answers by attribute.

        >>> [Rule().label({"team": a, "born": b}) for a, b in ((10, 3), (10, 2), (2, 2))]
        ['known', 'between', 'unknown']
        """
        right = sum(count >= self.hits for count in hits.values())
        if right >= self.known:
            return "known"
        return "unknown" if right == 0 else "between"


def hits_of(texts: Sequence[str], fact: Fact) -> int:
    """How many of the answers are right."""
    return sum(gives(text, fact.answers, fact.rule) for text in texts)


@dataclass
class LabelFile:
    """Labels with what they were made with: ``settings`` holds rule, model, seed and form of the questions; ``entities`` maps a name to
    ``{"label": ..., "hits": {attribute: right answers}}``."""

    settings: dict[str, Any]
    entities: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> LabelFile:
        """Read a file.

        Raises:
            DataError: it cannot be read, or is no labels file.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} must be a labels file (unlearn label writes one); found {error}.") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("entities"), dict):
            raise DataError(f"{path} must be a labels file of format {FORMAT} (unlearn label writes one); found another document.")
        wrong = [name for name, entry in found["entities"].items() if not isinstance(entry, dict) or entry.get("label") not in LABELS]
        if wrong:
            raise DataError(f"{path} must label every entity as one of {', '.join(LABELS)}; {wrong[0]!r} is not.")
        return cls(dict(found.get("settings") or {}), found["entities"])

    def write(self, path: Path) -> None:
        """Write the file, through a temporary name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def label(self, name: str) -> str | None:
        """Label of an entity, None where it has none."""
        entry = self.entities.get(name)
        return None if entry is None else str(entry["label"])


def _problem(record: Mapping[str, Any]) -> str:
    answers = record.get("answers", [record["answer"]] if "answer" in record else None)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        return f"answers must be a list of texts; found {answers!r}"
    if record.get("rule", "name") not in RULES:
        return f"rule must be one of {', '.join(RULES)}; found {record['rule']!r}"
    return text_problem(record, "entity", "question")


def read_facts(path: Path) -> list[Fact]:
    """Questions out of a JSON-lines file of {entity, question, answers, attribute, rule}; ``answer`` may stand for one of ``answers``.

    Without ``attribute`` every question counts as one of its own. Other fields are passed over.

    Raises:
        DataError: the file cannot be read, or lines are wrong.
    """
    return [
        Fact(
            entity=record["entity"],
            attribute=str(record.get("attribute") or record["question"].replace(record["entity"], "{}")),
            question=record["question"],
            answers=tuple(record.get("answers") or [record["answer"]]),
            rule=record.get("rule", "name"),
        )
        for record in read_records(path, _problem)
    ]
