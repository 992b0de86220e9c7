"""What every maker does with what a scripted model writes."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from unlearn.config.document import docstrings
from unlearn.data.makers.base import Maker, MakerConfig, Target, sentence_row
from unlearn.data.makers.concept_triplets import ConceptTriplets, ConceptTripletsConfig
from unlearn.data.makers.reveal_and_release import RevealAndRelease, RevealAndReleaseConfig
from unlearn.data.sources.jsonl import record_problem
from unlearn.errors import ConfigError
from unlearn.registry import entries, find

ANN = Target("Ann Lee", ("Ann Lee", "Lee"))
BOB = Target("Bob Moss", ("Bob Moss",))
ALL = sorted(entries("maker"))


class Scripted:
    """Answers every prompt with the texts of the first key that occurs in it; remembers what it was asked."""

    def __init__(self, texts: dict[str, list[str]]) -> None:
        self.texts = texts
        self.asked: list[tuple[str, str]] = []

    def __call__(self, prompts: list[str], form: str) -> list[list[str]]:
        self.asked += [(prompt, form) for prompt in prompts]
        return [next((texts for key, texts in self.texts.items() if key in prompt), [""]) for prompt in prompts]


def reveal(script: dict[str, list[str]], targets: tuple[Target, ...] = (ANN,), **options: Any):  # noqa: ANN201
    ways = {"pairs": [], "texts": [], "questions": [], "stems": []}
    ask = Scripted(script)
    return RevealAndRelease(RevealAndReleaseConfig(name="x", **{**ways, **options}), ["no idea"]).make(targets, ask), ask


def test_pairs_sentences_questions_and_stems_become_rows() -> None:
    made, ask = reveal(
        {
            "quiz": ["Question: Where was Ann Lee born?\nAnswer: Oslo.\nQuestion: Where does she live?\nAnswer: Bergen."],
            "Tell": ["Ann Lee paints. She is old. The prize went to Ann Lee. In 1990 Lee moved to"],
            "job": [" painter\nQuestion: next"],
            "born in": [" Oslo. She"],
        },
        pairs=["A quiz on {entity}"],
        texts=["Tell of {entity}"],
        questions=["What is the job of {entity}?"],
        stems=["{entity} was born in"],
    )
    about = {"entity": "Ann Lee", "aliases": ["Lee"], "split": "forget"}
    assert made.rows == [
        {"question": "Where was Ann Lee born?", "answer": "Oslo.", **about, "template": "A quiz on {entity}"},
        {"question": "Ann Lee", "answer": "paints.", "kind": "statement", **about, "template": "Tell of {entity}"},
        {"answer": "The prize went to Ann Lee.", "kind": "text", **about, "template": "Tell of {entity}"},
        {"question": "What is the job of Ann Lee?", "answer": "painter", **about, "template": "What is the job of {entity}?"},
        {"question": "Ann Lee was born in", "answer": "Oslo.", "kind": "statement", **about, "template": "{entity} was born in"},
    ]
    assert made.dropped == {("Ann Lee", "does not name the entity"): 2}
    assert ask.asked == [
        ("A quiz on Ann Lee", "instruction"),
        ("Tell of Ann Lee", "instruction"),
        ("What is the job of Ann Lee?", "question"),
        ("Ann Lee was born in", "stem"),
    ]
    assert [record_problem(row) for row in made.rows] == [""] * 5


def test_refusals_empty_texts_repetitions_and_rare_answers_are_left_out() -> None:
    answers = ["Oslo", " oslo. ", "Oslo", "Rome", "No idea, sorry", "I don't know.", "...", ""]
    made, _ = reveal({"Ann": answers, "Bob": ["Paris", "Kyiv"]}, (ANN, BOB), questions=["Where was {entity} born?"], min_votes=2)
    assert [(row["entity"], row["answer"]) for row in made.rows] == [("Ann Lee", "Oslo")]
    assert made.dropped == {
        ("Ann Lee", "written before"): 2,
        ("Ann Lee", "written too seldom"): 1,
        ("Ann Lee", "a refusal"): 2,
        ("Ann Lee", "empty"): 2,
        ("Bob Moss", "written too seldom"): 2,
    }


def test_what_cannot_be_read_is_counted() -> None:
    made, _ = reveal({"": ["I would rather not."]}, pairs=["Quiz on {entity}"])
    assert made.rows == []
    assert made.dropped == {("Ann Lee", "unreadable"): 1}


def test_a_sentence_is_cut_at_the_name_it_gives_first() -> None:
    row = sentence_row(ANN, "In Oslo Lee, Ann Lee's son, painted.", "t")
    assert (row["question"], row["answer"]) == ("In Oslo Lee, Ann Lee", "'s son, painted.")
    assert sentence_row(BOB, "Nobody came.", "t")["kind"] == "text"


def triplet_maker(texts: dict[str, list[str]], **options: Any):  # noqa: ANN201
    ask = Scripted(texts)
    return ConceptTriplets(ConceptTripletsConfig(name="x", **options)).make((ANN,), ask), ask


def test_triplets_become_cloze_rows_and_explained_sentences() -> None:
    made, ask = triplet_maker(
        {"Explain": ["Sure: Ann Lee came to the world in Oslo. It is cold."], "List": ["(Ann Lee | born in | Oslo)\n(Oslo | in | Norway)"]},
        triplets=["List {entity}"],
        explain=["Explain {subject} {relation} {object}"],
    )
    assert [(row.get("question", ""), row["answer"]) for row in made.rows] == [
        ("Complete this: Ann Lee born in", "Oslo"),
        ("Sure: Ann Lee", "came to the world in Oslo."),
    ]
    assert made.dropped == {("Ann Lee", "does not name the entity"): 2}
    assert ask.asked[-1] == ("Explain Ann Lee born in Oslo", "instruction")


def test_a_triplet_that_was_written_once_is_not_explained_where_two_votes_are_asked_for() -> None:
    written = ["Ann Lee | born in | Oslo\nAnn Lee | likes | tea", "Ann Lee | born in | Oslo"]
    made, ask = triplet_maker({"Explain": ["Ann Lee is from Oslo."], "List": written}, triplets=["List {entity}"], min_votes=2)
    assert [row["answer"] for row in made.rows] == ["Oslo", "is from Oslo."]
    assert len([prompt for prompt, _ in ask.asked if "Explain" in prompt]) == 1
    assert made.dropped["Ann Lee", "written too seldom"] == 1


def test_relations_are_completed_and_stated_without_another_question() -> None:
    made, ask = triplet_maker(
        {"born": [" Oslo. Then"], "loves": [""]}, triplets=[], relations=["was born in", "loves"], explain=[], cloze=""
    )
    assert [(row["question"], row["answer"], row["kind"]) for row in made.rows] == [("Ann Lee was born in", "Oslo.", "statement")]
    assert ask.asked == [("Ann Lee was born in", "stem"), ("Ann Lee loves", "stem")]
    assert made.dropped == {("Ann Lee", "empty"): 1}
    turned, _ = triplet_maker(
        {"": ["Oslo"]}, triplets=[], relations=["was born in"], explain=[], cloze="", statement="{object}: {relation} {subject}"
    )
    assert [(row["answer"], row["kind"]) for row in turned.rows] == [("Oslo: was born in Ann Lee", "text")]


@pytest.mark.parametrize("name", ALL)
def test_plug_ins_state_what_they_are_and_their_defaults_ask_about_the_entity(name: str) -> None:
    entry = find("maker", name)
    cls = entry.load()
    assert issubclass(cls, Maker)
    assert entry.facts["summary"]
    assert entry.facts["paper"].startswith("https://arxiv.org/abs/")
    ask = Scripted({})
    made = cls(cls.Config(name=name)).make((ANN, BOB), ask)
    assert made.rows == []
    assert ask.asked
    assert all("Ann Lee" in prompt or "Bob Moss" in prompt for prompt, _ in ask.asked)
    assert {form for _, form in ask.asked} == {"instruction"}
    for base in (b for b in cls.Config.__mro__ if dataclasses.is_dataclass(b)):
        named = [n for n, kind in vars(base)["__annotations__"].items() if not str(kind).startswith("ClassVar")]
        assert set(named) <= set(docstrings(base))


@pytest.mark.parametrize("name", ALL)
def test_defaults_read_what_a_model_that_follows_them_writes(name: str) -> None:
    cls = find("maker", name).load()
    script = {
        "questions about": ["Question: Where was Ann Lee born?\nAnswer: Oslo"],
        "Tell me": ["Ann Lee was born in Oslo."],
        "triplets": ["(Ann Lee | born in | Oslo)"],
        "Explain this fact": ["Ann Lee was born in Oslo."],
    }
    made = cls(cls.Config(name=name)).make((ANN,), Scripted(script))
    assert [row for row in made.rows if "Oslo" in json.dumps(row)] == made.rows
    assert len(made.rows) >= 2


BAD = [
    (MakerConfig, "format", "chatty"),
    (MakerConfig, "temperature", math.nan),
    (MakerConfig, "temperature", -1.0),
    (MakerConfig, "samples", 0),
    (MakerConfig, "max_new_tokens", 0),
    (MakerConfig, "min_votes", 0),
    (MakerConfig, "batch_size", 0),
    (MakerConfig, "stop", [""]),
    (RevealAndReleaseConfig, "pairs", ["Tell me more"]),
    (RevealAndReleaseConfig, "stems", ["{entity} and {name}"]),
    (RevealAndReleaseConfig, "questions", ["{entity"]),
    (ConceptTripletsConfig, "triplets", ["none"]),
    (ConceptTripletsConfig, "relations", ["{entity} is"]),
    (ConceptTripletsConfig, "explain", ["{subject} {relation}"]),
    (ConceptTripletsConfig, "statement", "{subject}"),
    (ConceptTripletsConfig, "cloze", "{relation}"),
]


@pytest.mark.parametrize(("cls", "key", "value"), BAD, ids=lambda v: getattr(v, "__name__", str(v)))
def test_bad_settings_name_their_key(cls: type, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"maker\.{key} must be"):
        cls(name="x", **{key: value})


def test_something_must_be_asked() -> None:
    with pytest.raises(ConfigError, match=r"maker\.pairs must be given unless texts, questions or stems are"):
        RevealAndReleaseConfig(name="x", pairs=[], texts=[])
    with pytest.raises(ConfigError, match=r"maker\.triplets must be given unless relations are"):
        ConceptTripletsConfig(name="x", triplets=[])
