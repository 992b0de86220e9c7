"""MMLU (Hendrycks et al., 2009.03300): four-choice questions of 57 subjects, of which some are to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.config.checks import check, one_of
from unlearn.data.sources.benchmark import PART, Benchmark, Parts
from unlearn.data.sources.choices import ChoiceConfig, choice_problem, choice_rows, with_terms
from unlearn.data.sources.tables import Tables, checked, read_json, read_rows
from unlearn.errors import DataError, did_you_mean
from unlearn.types import EntityData

SUBJECTS: tuple[str, ...] = (
    *("abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology", "college_chemistry"),
    *("college_computer_science", "college_mathematics", "college_medicine", "college_physics", "computer_security"),
    *("conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics", "formal_logic", "global_facts"),
    *("high_school_biology", "high_school_chemistry", "high_school_computer_science", "high_school_european_history"),
    *("high_school_geography", "high_school_government_and_politics", "high_school_macroeconomics", "high_school_mathematics"),
    *("high_school_microeconomics", "high_school_physics", "high_school_psychology", "high_school_statistics", "high_school_us_history"),
    *("high_school_world_history", "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies"),
    *("machine_learning", "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios"),
    *("nutrition", "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine"),
    *("professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology", "world_religions"),
)
"""Subjects in the order of the alphabet, which is also that of tables without subject names."""

HUB = "cais/mmlu"
MINI = "mmlu_*_per_subject.json"
"""A dictionary of lists ``questions``, ``choices`` and ``answers``, with as many questions of each subject, subjects in order."""


@dataclass(frozen=True, kw_only=True)
class MmluConfig(ChoiceConfig):
    """MMLU."""

    forget: list[str] = field(default_factory=lambda: ["virology"])
    """subjects to forget"""
    retain: list[str] | None = None
    """subjects to keep; null keeps every other one"""
    split: str = "test"
    """which questions: test, validation or dev"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.split, ("test", "validation", "dev"), "data.split")
        check(bool(self.forget), "data.forget", "at least one subject", self.forget)
        for name in self.forget:
            one_of(name, SUBJECTS, "data.forget")
        for name in self.retain or ():
            one_of(name, SUBJECTS, "data.retain")
        twice = sorted(set(self.forget) & set(self.retain or ()))
        check(not twice, "data.retain", "other subjects than data.forget", twice)


def _mini(path: Path) -> list[dict[str, Any]]:
    found = read_json(path)
    columns = [found.get(name) if isinstance(found, dict) else None for name in ("questions", "choices", "answers")]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
    if len(lengths) != 1 or min(lengths) < len(SUBJECTS) or min(lengths) % len(SUBJECTS):
        raise DataError(
            f"{path} must hold lists questions, choices and answers with as many questions of each of {len(SUBJECTS)} subjects; "
            f"found lengths {sorted(lengths)}."
        )
    each = min(lengths) // len(SUBJECTS)
    return [
        {"question": question, "choices": choices, "answer": answer, "subject": SUBJECTS[i // each]}
        for i, (question, choices, answer) in enumerate(zip(*columns, strict=True))
    ]


def _csv(path: Path, subject: str) -> list[dict[str, Any]]:
    """Rows of a file as it was first published: question, four options, letter; no header."""
    wrong = [i for i, cells in enumerate(read_rows(path)) if len(cells) != 6 or cells[5] not in "ABCD"]
    if wrong:
        raise DataError(f"{path} must hold a question, four options and a letter in each row; row {wrong[0]} does not.")
    rows = read_rows(path)
    return [{"question": c[0], "choices": c[1:5], "answer": "ABCD".index(c[5]), "subject": subject} for c in rows]


def read_mmlu(tables: Tables, split: str, subjects: Sequence[str] | None = None, hub: str = HUB) -> list[dict[str, Any]]:
    """Records {question, choices, answer, subject} of ``subjects`` (None: all), in the order of the subjects.

    A folder may hold one file per subject (``<split>/<subject>_<split>.csv`` as first published, ``<subject>/<split>-*.parquet`` as on the
    hub), one for all (``all/<split>-*.parquet``), or a small table of the first questions of each subject (``mmlu_*_per_subject.json``).

    Raises:
        DataError: there are none of these, or a subject has no questions.
    """
    wanted = SUBJECTS if subjects is None else subjects
    found = _local(tables, split, wanted) if tables.root else tables.read((), "all", split, choice_problem, hub=hub)
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for record in found:
        by_subject.setdefault(str(record.get("subject")), []).append(record)
    empty = [name for name in (subjects or ()) if name not in by_subject]
    if empty:
        raise DataError(f"MMLU's {split} questions must hold subject {empty[0]!r}; found none.{did_you_mean(empty[0], by_subject)}")
    return [record for name in wanted for record in by_subject.get(name, ())]


def _local(tables: Tables, split: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    short_split = "val" if split == "validation" else split
    for place in ("", "data/", "mmlu/"):
        if found := tables.find(f"{place}all/{split}-*.parquet", f"{place}all_{split}.jsonl"):
            return checked([row for path in found for row in read_rows(path)], choice_problem, str(found[0]))
        if found := tables.find(f"{place}{MINI}"):
            return checked(_mini(found[0]), choice_problem, str(found[0]))
        records = []
        for subject in wanted:
            paths = tables.find(f"{place}{short_split}/{subject}_{short_split}.csv", f"{place}{subject}/{split}-*.parquet")
            for path in paths:
                rows = _csv(path, subject) if path.suffix == ".csv" else [{**row, "subject": subject} for row in read_rows(path)]
                records += checked(rows, choice_problem, str(path))
        if records:
            return records
    raise tables.missing(f"{short_split}/{wanted[0]}_{short_split}.csv")


class MmluSource(Benchmark):
    """Questions of the subjects to forget against those of the others.

    A question's entity is its most telling term, such that no question to be kept names it: MMLU has no entities of its own. Unknown
    anchors ask questions to be kept about words that are made of the halves of real terms. A fifth of the terms of either side is held out:
    those of the forget subjects are measured only (``forget_paraphrased``: other questions of the same subjects), those of the others make
    ``retain_unseen``. Options are compared by their letters (``choice_accuracy``).
    """

    name = "mmlu"
    summary = "MMLU: four-choice questions of 57 subjects; forget some subjects, keep the others"
    title = "MMLU"
    hub = HUB
    origin = "https://huggingface.co/datasets/cais/mmlu"
    Config = MmluConfig
    config: MmluConfig

    def load(self) -> EntityData:
        """Read the questions and divide them."""
        c = self.config
        others = [name for name in SUBJECTS if name not in c.forget] if c.retain is None else c.retain
        kept_records = read_mmlu(self.tables, c.split, None if c.retain is None else others, self.tables.hub)
        kept_records = [record for record in kept_records if record["subject"] in others]
        retain, asked, long = choice_rows(kept_records, PART, c.header, c.max_words)
        target, questions, cut = choice_rows(read_mmlu(self.tables, c.split, c.forget, self.tables.hub), 0, c.header, c.max_words)
        rows = with_terms(target, questions, [row.prompt for row in retain])
        away = self.hold_out(rows, c.unseen_share, "the forget subjects")
        trained = [row for row in rows if row.entity not in away]
        parts = Parts(
            forget=trained,
            retain=with_terms(retain, asked),
            evaluation={"forget_paraphrased": [row for row in rows if row.entity in away]},
            notes={
                "forget subjects": ", ".join(c.forget),
                "questions left out because they are too long": str(long + cut),
                "forget_paraphrased": "other questions of the forget subjects, not trained on",
            },
        )
        return self.build(parts)
