"""Labels: when an entity is known, and the file that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unlearn.data.labels import Fact, LabelFile, Rule, hits_of, read_facts
from unlearn.errors import DataError


@pytest.mark.parametrize(
    ("hits", "label"),
    [
        ({}, "unknown"),
        ({"a": 2, "b": 2, "c": 0}, "unknown"),
        ({"a": 3}, "between"),
        ({"a": 3, "b": 10}, "known"),
        ({"a": 10, "b": 2}, "between"),
    ],
)
def test_the_papers_thresholds(hits: dict[str, int], label: str) -> None:
    assert Rule().label(hits) == label


def test_other_thresholds() -> None:
    assert Rule(known=1).label({"a": 3}) == "known"
    assert Rule(hits=1).label({"a": 1, "b": 1}) == "known"
    assert Rule(hits=10, known=1).label({"a": 9}) == "unknown"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be >= 1; found 0."),
        ({"samples": 2, "hits": 3}, "hits must be at most the number of samples, 2; found 3."),
        ({"known": 0}, "known must be >= 1; found 0."),
        ({"temperature": 0.0}, "temperature must be > 0; found 0.0."),
        ({"temperature": float("nan")}, "temperature must be > 0; found nan."),
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1; found 0."),
    ],
)
def test_bad_thresholds(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError) as error:
        Rule(**options)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_hits_count_right_answers() -> None:
    fact = Fact(entity="Riga", attribute="country", question="Where is Riga?", answers=("Latvia", "LV"))
    assert hits_of(["in Latvia", "Estonia", "LV.", "", "Lettland\nLatvia"], fact) == 2


def test_the_file_comes_back(tmp_path: Path) -> None:
    made = LabelFile({"seed": 3}, {"Ånn Lee": {"label": "known", "hits": {"born": 4}}})
    made.write(tmp_path / "deep" / "labels.json")
    found = LabelFile.read(tmp_path / "deep" / "labels.json")
    assert (found.settings, found.entities) == (made.settings, made.entities)
    assert [found.label(name) for name in ("Ånn Lee", "Bob Moss")] == ["known", None]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["labels.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "must be a labels file (unlearn label writes one); found Expecting value"),
        ('{"format": 2, "entities": {}}', "must be a labels file of format 1 (unlearn label writes one); found another document."),
        (
            '{"format": 1, "entities": {"Ann": {"label": "maybe"}}}',
            "must label every entity as one of known, between, unknown; 'Ann' is not.",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        LabelFile.read(path)
    assert str(error.value).startswith(f"{path} {message}")


def test_facts_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    rows = [
        {"entity": "Riga", "question": "Where is Riga?", "answers": ["Latvia"], "attribute": "country", "split": "ignored"},
        {"entity": "Riga", "question": "How old is Riga?", "answer": "1201", "rule": "year"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_facts(path)
    assert (first.attribute, first.answers, first.rule) == ("country", ("Latvia",), "name")
    assert (second.attribute, second.answers, second.rule) == ("How old is {}?", ("1201",), "year")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"entity": "Riga", "question": "Where?"}, "answers must be a list of texts; found None."),
        ({"entity": "Riga", "question": "Where?", "answers": []}, "answers must be a list of texts; found []."),
        ({"question": "Where?", "answer": "x"}, "entity must be a text; found nothing."),
        ({"entity": "Riga", "question": "Where?", "answer": "x", "rule": "guess"}, "rule must be one of name, part, birth_year"),
    ],
)
def test_facts_that_are_none(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError) as error:
        read_facts(path)
    assert str(error.value).startswith(f"{path}:1 {message}")
