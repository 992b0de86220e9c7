"""PopQA (Mallen et al., 2212.10511): questions on 16 relations of Wikidata entities, with page views as a measure of popularity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.config.checks import check
from unlearn.data.entities import find_mention
from unlearn.data.labels import Fact
from unlearn.data.records import text_problem
from unlearn.data.sources.facts import Facts, FactsConfig
from unlearn.data.sources.tables import checked, read_rows

REWORDED: Mapping[str, str] = {
    "occupation": "What does {} do for a living?",
    "place of birth": "What is the birthplace of {}?",
    "genre": "Which genre does {} belong to?",
    "father": "Whose child on the father's side is {}?",
    "mother": "Whose child on the mother's side is {}?",
    "country": "Which country does {} lie in?",
    "producer": "Who was in charge of producing {}?",
    "director": "Whose film is {}?",
    "capital of": "Which place has {} as its capital?",
    "screenwriter": "Who wrote the script of {}?",
    "composer": "Who wrote the music of {}?",
    "color": "Which colour does {} have?",
    "religion": "What faith does {} follow?",
    "sport": "Which sport is {} known for?",
    "author": "Who wrote {}?",
    "capital": "Which city is the seat of government of {}?",
}
"""A second wording for each relation; PopQA has but one."""


@dataclass(frozen=True, kw_only=True)
class PopqaConfig(FactsConfig):
    """PopQA."""

    relations: list[str] | None = None
    """relations that are asked about (occupation, director, ...); null takes all"""
    known_views: float = 2000.0
    """monthly page views from which a subject counts as known where no labels file says, > unknown_views"""
    unknown_views: float = 100.0
    """page views up to which it counts as unknown, >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.relations or ():
            check(name in REWORDED, "data.relations", f"relations of PopQA ({', '.join(REWORDED)})", name)
        check(self.unknown_views >= 0, "data.unknown_views", ">= 0", self.unknown_views)
        check(self.known_views > self.unknown_views, "data.known_views", "> data.unknown_views", self.known_views)


def _answers(record: Mapping[str, Any]) -> list[str]:
    """``possible_answers``, which is a list written as a text; a table read from the hub may give a list."""
    listed = record.get("possible_answers")
    try:
        found = json.loads(listed) if isinstance(listed, str) else listed
    except ValueError:
        return []
    return [str(answer) for answer in found if str(answer).strip()] if isinstance(found, list) else []


def popqa_problem(record: Mapping[str, Any]) -> str:
    """What is wrong with a record, or an empty string."""
    if fault := text_problem(record, "subj", "prop", "obj", "question"):
        return fault
    if not isinstance(record.get("s_pop"), int | float):
        return f"s_pop must be a number; found {record.get('s_pop')!r}"
    return "" if _answers(record) else f"possible_answers must be a list of texts; found {record.get('possible_answers')!r}"


def popqa_fact(record: Mapping[str, Any]) -> Fact:
    """A record as a fact: the answer is ``obj``, every other possible answer is accepted too.

    >>> made = popqa_fact({"subj": "Riga", "prop": "country", "obj": "Latvia", "question": "In what country is Riga?", "s_pop": 9,
    ...                    "possible_answers": '["Latvia", "LV"]'})
    >>> made.answers, made.reworded, made.popularity
    (('Latvia', 'LV'), 'Which country does Riga lie in?', 9.0)
    """
    answers = (record["obj"].strip(), *_answers(record))
    again = REWORDED.get(record["prop"], "")
    return Fact(
        entity=record["subj"].strip(),
        attribute=record["prop"],
        question=record["question"],
        answers=tuple(dict.fromkeys(answers)),
        reworded=again.format(record["subj"].strip()),
        popularity=float(record["s_pop"]),
    )


def read_popqa(path: Path) -> list[Fact]:
    """Facts out of a file of PopQA's records.

    Raises:
        DataError: it cannot be read, or records are wrong.
    """
    return [popqa_fact(record) for record in checked(read_rows(path), popqa_problem, str(path))]


class PopqaSource(Facts):
    """Popular subjects are known, of which some are to be forgotten; subjects that hardly anyone looks up are unknown.

    Every accepted answer counts as right (``accuracy``). Most subjects have one question only: label them with ``unlearn label --known 1``.
    A subject that stands for several entities (of the same name) is left out.
    """

    name = "popqa"
    summary = "PopQA: questions on 16 relations of real entities, popular ones known, obscure ones unknown"
    title = "PopQA"
    hub = "akariasai/PopQA"
    Config = PopqaConfig
    config: PopqaConfig

    def facts(self) -> list[Fact]:
        """Questions whose subject is named in full."""
        c = self.config
        patterns = ("popqa*.jsonl", "popqa*.json", "test-*.parquet", "data/test-*.parquet")
        records = self.tables.read(patterns, None, "test", popqa_problem)
        owners: dict[str, set[str]] = {}
        for record in records:
            owners.setdefault(record["subj"].strip(), set()).add(str(record.get("subj_id", "")))
        facts = [popqa_fact(record) for record in records if c.relations is None or record["prop"] in c.relations]
        return [fact for fact in facts if len(owners[fact.entity]) == 1 and find_mention(fact.question, "", (fact.entity,)) is not None]

    def known(self, fact: Fact) -> bool:
        """Whether the subject is popular."""
        return fact.popularity is not None and fact.popularity >= self.config.known_views

    def unknown(self, fact: Fact) -> bool:
        """Whether hardly anyone looks the subject up."""
        return fact.popularity is not None and fact.popularity <= self.config.unknown_views

    def by_default(self) -> str:
        """How known entities are told where there is no labels file."""
        return f"page views of {self.config.known_views:g} or more"
