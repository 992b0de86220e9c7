"""PopQA: popular subjects, obscure ones, several accepted answers; and labels in their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.sources.fake_benchmarks import person, term, write_popqa
from tests.data.sources.shared import shared
from tests.toys import toy
from unlearn.data.checks import check_streams
from unlearn.data.labels import LabelFile
from unlearn.data.sources.popqa import REWORDED, PopqaConfig, PopqaSource, popqa_problem, read_popqa
from unlearn.errors import ConfigError, DataError
from unlearn.evaluation.answers import measure_answers
from unlearn.types import EntityData


def load(root: Path, seed: int = 0, **options: object) -> EntityData:
    usual = {"unknown_names": 8, "heldout_names": 4, "forget_entities": 2}
    return PopqaSource(PopqaConfig(source="popqa", root=str(root), **{**usual, **options}), seed=seed, cache=Path("unused")).load()  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["made up", "shared"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    folder = tmp_path_factory.mktemp("popqa")
    return (write_popqa(folder), False) if request.param == "made up" else shared("popqa", write_popqa, folder)


def test_popularity_tells_known_from_unknown(files: tuple[Path, bool]) -> None:
    root, real = files
    data = load(root)
    check_streams(data)
    facts = {fact.entity: fact for path in root.glob("popqa*.jsonl") for fact in read_popqa(path)}
    views = {name: [facts[row.entity].popularity for row in rows] for name, rows in data.streams.items()}
    assert min(views["forget"] + views["retain"]) >= 2000  # type: ignore[operator]
    assert max(views["unknown"]) <= 100  # type: ignore[type-var]
    assert len({row.entity for row in data.streams["forget"]}) == 2
    assert data.notes["known entities"].startswith("152, " if real else "6, ")
    assert data.notes["unknown"] == "real entities"


def test_other_answers_are_accepted_and_wrong_ones_are_wrong(files: tuple[Path, bool]) -> None:
    data = load(files[0])
    for row in (*data.streams["forget"], *data.streams["retain"]):
        assert row.answer not in row.accepted_answers
        assert len(row.perturbed_answers) == 3
        assert not set(row.perturbed_answers) & {row.answer, *row.accepted_answers}
    assert any(row.accepted_answers for row in data.streams["retain"])


def test_second_wordings_are_held_out(files: tuple[Path, bool]) -> None:
    data = load(files[0])
    for row in (*data.evaluation["forget_paraphrased"], *data.latent["known"], *data.latent["unknown"]):
        relation = row.template.removesuffix(" reworded")
        assert row.prompt == REWORDED[relation].format(row.entity)
    trained = {row.prompt for rows in data.streams.values() for row in rows}
    assert not trained & {row.prompt for rows in data.latent.values() for row in rows}


def test_a_real_record() -> None:
    root, real = shared("popqa", lambda path: path, Path("unused"))
    record = {
        "subj": "George Rankin",
        "prop": "occupation",
        "obj": "politician",
        "s_pop": 142,
        "question": "What is George Rankin's occupation?",
        "possible_answers": '["politician", "political leader", "political figure", "polit.", "pol"]',
    }
    if real:
        first = json.loads((root / "popqa_1000.jsonl").read_text().split("\n", 1)[0])
        assert {key: first[key] for key in record} == record
    assert popqa_problem(record) == ""
    assert popqa_problem({**record, "possible_answers": "politician"}) == "possible_answers must be a list of texts; found 'politician'"
    assert popqa_problem({**record, "s_pop": "142"}) == "s_pop must be a number; found '142'"
    assert popqa_problem({**record, "subj": " "}) == "subj must be a text; found ' '"


def test_subjects_of_the_same_name_are_left_out(tmp_path: Path) -> None:
    data = load(write_popqa(tmp_path))
    assert person(0) not in {row.entity for rows in data.streams.values() for row in rows}
    assert person(1) in {row.entity for rows in (*data.streams.values(), *data.evaluation.values()) for row in rows}


def test_relations_and_names_that_are_asked_for(tmp_path: Path) -> None:
    write_popqa(tmp_path)
    data = load(tmp_path, relations=["occupation"], forget=[person(3), person(20)])
    assert {row.entity for row in data.streams["forget"]} == {person(3), person(20)}
    assert {row.attribute for row in data.streams["retain"]} == {"occupation"}
    with pytest.raises(DataError, match=f"^data.forget must name entities of PopQA; found '{person(3)}x'. Did you mean '{person(3)}'[?]$"):
        load(tmp_path, forget=[f"{person(3)}x"])
    with pytest.raises(DataError, match="^data.forget_entities must leave two known entities to keep; found 6 of 6.$"):
        load(tmp_path, forget_entities=6)


def test_labels_take_the_place_of_popularity(tmp_path: Path) -> None:
    write_popqa(tmp_path)
    known, unknown, between = ([person(i) for i in range(a, b)] for a, b in ((10, 20), (1, 9), (20, 60)))
    label = dict.fromkeys(known, "known") | dict.fromkeys(unknown, "unknown") | dict.fromkeys(between, "between")
    LabelFile({}, {name: {"label": kind, "hits": {}} for name, kind in label.items()}).write(tmp_path / "labels.json")
    data = load(tmp_path, labels=str(tmp_path / "labels.json"), unknown_names=4, heldout_names=4)
    check_streams(data)
    kept = {row.entity for name in ("forget", "retain") for row in data.streams[name]} | {
        row.entity for row in data.evaluation["retain_unseen"]
    }
    assert kept == set(known)
    assert {row.entity for row in (*data.streams["unknown"], *data.evaluation["unknown"])} == set(unknown)
    assert data.notes["known entities"] == "10, by the labels file"
    assert load(tmp_path).fingerprint != data.fingerprint
    LabelFile({}, {name: {"label": "known", "hits": {}} for name in known}).write(tmp_path / "known.json")
    invented = load(tmp_path, labels=str(tmp_path / "known.json"))
    assert invented.notes["unknown"] == "invented names in the words of the known questions"
    LabelFile({}, {"Somebody": {"label": "known", "hits": {}}}).write(tmp_path / "other.json")
    with pytest.raises(DataError, match="^data.labels must label entities of the source as known; .*other.json labels none of its 59.$"):
        load(tmp_path, labels=str(tmp_path / "other.json"))


def test_any_accepted_answer_counts_as_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = toy(tmp_path / "toy")
    row = load(write_popqa(tmp_path)).streams["retain"][0]
    said = iter([[row.accepted_answers[0]], [row.answer], ["nothing"]])
    monkeypatch.setattr("unlearn.evaluation.answers.answer", lambda *_: next(said))
    found = [measure_answers(made.lm, [row], made.reader()).values["accuracy"].tolist() for _ in range(3)]
    assert found == [[1.0], [1.0], [0.0]]
    assert row.accepted_answers == (f"{row.answer}s",)
    assert row.answer in {term(i) for i in range(7)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relations": ["ocupation"]}, "data.relations must be relations of PopQA"),
        ({"unknown_views": -1.0}, "data.unknown_views must be >= 0"),
        ({"known_views": 50.0}, "data.known_views must be > data.unknown_views"),
        ({"known_views": float("nan")}, "data.known_views must be > data.unknown_views"),
        ({"forget_entities": 0}, "data.forget_entities must be >= 1"),
        ({"max_entities": 2}, "data.max_entities must be >= 3"),
        ({"wrong_answers": -1}, "data.wrong_answers must be >= 0"),
        ({"refusals": [" "]}, "data.refusals must be a list of texts"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PopqaConfig(source="popqa", **options)  # type: ignore[arg-type]
