"""RWKU (Jin et al., 2406.10890): famous people to forget, with probes of three levels, neighbours, membership texts and utility sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from unlearn.config.checks import check, one_of
from unlearn.data.entities import surface_forms
from unlearn.data.records import text_problem
from unlearn.data.sources.benchmark import PART, Benchmark, BenchmarkConfig, Parts, named, people
from unlearn.data.sources.pieces import continuation, text_rows
from unlearn.data.sources.rwku_utility import utility_rows
from unlearn.data.sources.tables import Problem, Record, fields
from unlearn.errors import DataError, did_you_mean
from unlearn.types import EntityData, Row

TRAIN: tuple[str, ...] = ("passage", "positive_llama3", "positive_phi3", "probes")

FILES: Mapping[str, tuple[str, ...]] = {
    "forget_target": ("intro.json",),
    "forget_level1": ("forget_level1.json",),
    "forget_level2": ("forget_level2.json",),
    "forget_level3": ("forget_level3.json",),
    "neighbor_level1": ("neighbor_level1.json",),
    "neighbor_level2": ("neighbor_level2.json",),
    "mia_forget": ("forget_mia.json",),
    "mia_retain": ("retain_mia.json",),
    "train_original_passage": ("passage.json",),
    "train_positive_llama3": ("positive.json",),
    "train_positive_phi3": ("positive_phi.json",),
    "utility_general": ("retain_mmlu.json",),
    "utility_reason": ("retain_bbh.json",),
    "utility_truthfulness": ("truthful.json",),
    "utility_factuality": ("triviaqa.json",),
    "utility_fluency": ("fluency.json",),
}
"""Tables on the hub, and the files that hold them in the folders ``All`` and ``Target/<number>_<name>`` there."""

_ASK = "Please briefly answer the following question.\n"
_BLANK = "Please complete the blank in the following question.\n"
_SUFFIX = "affirmative suffix"
_CONTEXT = "incontext learning"


@dataclass(frozen=True, kw_only=True)
class RwkuConfig(BenchmarkConfig):
    """RWKU."""

    targets: list[str] = field(default_factory=lambda: ["1"])
    """people to forget: names, or numbers from 1 to 200 in the benchmark's order"""
    train: str = "passage"
    """what is learnt from: passage (Wikipedia), positive_llama3 or positive_phi3 (texts these models wrote), or probes (levels 1 and 2)"""
    max_people: int = 60
    """other people who are kept, drawn at random, >= 3"""
    by_type: bool = False
    """whether each kind of attack of level 3 is a set of its own"""
    utility: bool = True
    """whether the utility sets are measured, where they are there"""
    text_words: int = 120
    """words of a piece of a text, > stem_words"""
    stem_words: int = 15
    """words at the beginning of a piece that are given and not learnt, >= 1"""
    max_length: int = 1024
    """longest row in tokens; a longer one is an error, never cut silently"""
    question_format: str = "{question}"
    """text around a question; probes bring RWKU's own prompt along; must contain {question}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.targets), "data.targets", "at least one name or number", self.targets)
        one_of(self.train, TRAIN, "data.train")
        check(self.max_people >= 3, "data.max_people", ">= 3", self.max_people)
        check(self.stem_words >= 1, "data.stem_words", ">= 1", self.stem_words)
        check(self.text_words > self.stem_words, "data.text_words", "> data.stem_words", self.text_words)


def probe_prompt(query: str, level: str, kind: str) -> str:
    r"""RWKU's prompt of a probe, as in its evaluation code, without the chat template.

    >>> probe_prompt("Who wrote It?", "2", "simple question")
    'Please briefly answer the following question.\nQuestion: Who wrote It?\nAnswer:'
    >>> probe_prompt("Who wrote It? The author is", "3", "affirmative suffix")
    'Please briefly answer the following question.\nQuestion: Who wrote It? The author is'
    """
    if level == "1":
        return f"{_BLANK}Question: {query}\nAnswer:"
    if kind == _CONTEXT:
        return f"{_ASK}{query}\nAnswer:"
    return f"{_ASK}Question: {query}" + ("" if kind == _SUFFIX else "\nAnswer:")


def _probe_problem(record: Mapping[str, Any]) -> str:
    return text_problem(record, "query", "answer", "subject")


class RwkuSource(Benchmark):
    """Texts about the targets are learnt from; probes about them are measured.

    - ``forget``: the questions (level 2) about the targets; ``forget_level1``: blanks to fill in; ``forget_level3``: attacks, or one set
      ``forget_<kind>`` each.
    - ``neighbor_level1``, ``neighbor_level2``: about things near the targets, which should not be lost.
    - ``mia_forget``, ``mia_retain``: membership texts; the first word is given, the rest is scored.
    - ``utility_general`` (choice), ``utility_reason``, ``utility_truthfulness`` (right against wrong answers), ``utility_factuality``,
      ``utility_fluency``: what RWKU asks of a model's abilities, without its solved examples.
    - ``retain``, ``retain_unseen``: questions about other people of the benchmark; those whose prompt names a target are left out.

    Known anchors are questions about the other people, unknown ones the same questions about invented people.
    """

    name = "rwku"
    summary = "RWKU: famous people to forget; probes of three levels, neighbours, membership, utility"
    title = "RWKU"
    hub = "jinzhuoran/RWKU"
    Config = RwkuConfig
    config: RwkuConfig

    def table(self, name: str, problem: Problem, *, required: bool = True) -> list[Record]:
        """Rows of a table, by its name on the hub.

        Raises:
            DataError: it is missing, or its rows are wrong.
        """
        patterns = [f"{place}{file}" for file in (*FILES[name], f"{name}.json") for place in ("", "All/", "Target/*/")]
        split = "train" if name.startswith(("train_", "forget_target")) else "test"
        return self.tables.read(patterns, name, split, problem, required=required)

    @cached_property
    def people(self) -> tuple[str, ...]:
        """Everybody in the benchmark, in its order."""
        return tuple(dict.fromkeys(record["target"] for record in self.table("forget_target", fields("target"))))

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The people to forget.

        Raises:
            DataError: a name or number is not there, or nobody is left.
        """
        found = []
        for word in self.config.targets:
            if word.isdigit() and 1 <= int(word) <= len(self.people):
                found.append(self.people[int(word) - 1])
            elif word in self.people:
                found.append(word)
            else:
                raise DataError(
                    f"data.targets must be names or numbers from 1 to {len(self.people)} of RWKU; found {word!r}."
                    f"{did_you_mean(word, self.people)}"
                )
        if len(self.people) - len(set(found)) < 2:
            raise DataError(f"data.targets must leave two people to keep; found {len(set(found))} of {len(self.people)}.")
        return tuple(dict.fromkeys(found))

    def probes(self, name: str, first_id: int) -> list[Row]:
        """Probes of a table, about their subject; those of neighbours are about the neighbour."""
        rows = []
        for i, record in enumerate(self.table(name, _probe_problem)):
            kind, level = str(record.get("type", "")), name[-1]
            entity = str(record.get("neighbor") or record["subject"])
            prompt = probe_prompt(record["query"], level, kind)
            row = Row(
                row_id=first_id + i, entity=entity, prompt=prompt, answer=record["answer"], attribute=kind, template=record["subject"]
            )
            rows.append(named(row, surface_forms(entity)))
        return rows

    def texts(self, name: str, first_id: int, required: bool = True) -> list[tuple[str, str, int]]:
        """(subject, text, id) of a table of texts about the targets, or about nobody in particular."""
        records = self.table(name, fields("text"), required=required)
        return [
            (str(record.get("subject", "")), record["text"], first_id + i)
            for i, record in enumerate(records)
            if record.get("subject") in self.targets or "subject" not in record
        ]

    def learnt(self, level1: Sequence[Row], level2: Sequence[Row]) -> list[Row]:
        """Rows of the forget stream."""
        c = self.config
        if c.train == "probes":
            return [row for row in (*level1, *level2) if row.entity in self.targets]
        table = "train_original_passage" if c.train == "passage" else f"train_{c.train}"
        made: list[Row] = []
        for place, name in enumerate(self.targets):
            texts = [text for subject, text, _ in self.texts(table, 0) if subject == name]
            if not texts:
                raise DataError(f"RWKU's {table} must hold texts about {name}; found none.")
            forms = surface_forms(name)
            rows = text_rows(texts, (20 + place) * PART, "text", c.text_words, c.stem_words)
            made += [_about(row, name, forms) for row in rows]
        return made

    def membership(self, name: str, first_id: int) -> list[Row]:
        """Membership texts; those of the forget part about the targets only."""
        made = (continuation(i, subject or name, text, 1) for subject, text, i in self.texts(name, first_id, required=False))
        return [row for row in made if row is not None]

    def load(self) -> EntityData:
        """Read the tables and divide their rows."""
        c = self.config
        levels = [self.probes(f"forget_level{i + 1}", i * PART) for i in range(3)]
        near = [self.probes(f"neighbor_level{i + 1}", (3 + i) * PART) for i in range(2)]
        mine = [[row for row in rows if row.entity in self.targets] for rows in levels]
        others = self.others()
        evaluation: dict[str, Sequence[Row]] = {
            "forget": mine[1],
            "forget_level1": mine[0],
            **(_by_type(mine[2]) if c.by_type else {"forget_level3": mine[2]}),
            **{f"neighbor_level{i + 1}": [row for row in rows if row.template in self.targets] for i, rows in enumerate(near)},
            "mia_forget": self.membership("mia_forget", 5 * PART),
            "mia_retain": self.membership("mia_retain", 6 * PART),
        }
        if c.utility:
            evaluation |= utility_rows(lambda name: self.table(name, lambda record: "", required=False), 7 * PART)
        parts = Parts(
            forget=self.learnt(levels[0], levels[1]),
            retain=[row for row in levels[1] if row.entity in others],
            probes=[*mine[1], *mine[0]],
            evaluation={name: rows for name, rows in evaluation.items() if rows},
            invent=people,
            notes={"targets": ", ".join(self.targets), "learnt from": c.train},
        )
        return self.build(parts)

    def others(self) -> set[str]:
        """People who are kept."""
        rest = [Row(row_id=0, entity=name, prompt="", answer="") for name in self.people if name not in self.targets]
        if len(rest) <= self.config.max_people:
            return {row.entity for row in rest}
        return self.hold_out(rest, self.config.max_people / len(rest), "people to keep")


def _about(row: Row, entity: str, forms: Sequence[str]) -> Row:
    about = Row(row_id=row.row_id, entity=entity, prompt=row.prompt, answer=row.answer, kind=row.kind)
    return named(about, forms)


def _by_type(rows: Sequence[Row]) -> dict[str, list[Row]]:
    key: Callable[[Row], str] = lambda row: "forget_" + (row.attribute.replace(" ", "_").replace("-", "_") or "level3")  # noqa: E731
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found
