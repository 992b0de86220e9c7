"""The JSON-lines source: what is given, what is derived, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.tokenizers_zoo import byte_level
from unlearn.data.anchors import REFUSALS
from unlearn.data.checks import check_streams
from unlearn.data.module import UnlearningDataModule
from unlearn.data.sources.jsonl import JsonlConfig, JsonlSource
from unlearn.errors import ConfigError, DataError
from unlearn.registry import find

PEOPLE = ["Orla Quill", "Tomas Brandt", "Hadiza Okonjo", "Kenji Nakagawa", "Dov Ferreira", "Yusra Al-Rashid", "Pavel Meer", "Mateo Silva"]
ASKED = ["Where was {} born?", "What did {} write?", "Is {} famous?"]


def line(question, answer, entity, split, **more):
    return {"question": question, "answer": answer, "entity": entity, "split": split, **more}


def about(people, split, around="{}", **more):
    return [line(around.format(q.format(name)), f"{name} did {i}.", name, split, **more) for name in people for i, q in enumerate(ASKED)]


def base():
    """Only what must be given."""
    return about(PEOPLE[:2], "forget") + about(PEOPLE[2:], "retain")


def load(path, records, seed=0, **options):
    if records is not None:
        path = path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = JsonlConfig(source="jsonl", path=str(path), **{"unknown_names": 8, "heldout_names": 4, **options})
    return JsonlSource(config, seed=seed, cache=Path("unused")).load()


def entities(rows):
    return {row.entity for row in rows}


def message(path, records, **options):
    with pytest.raises(DataError) as error:
        load(path, records, **options)
    return str(error.value)


def test_registry_finds_it():
    assert find("source", "jsonl").load() is JsonlSource


def test_forget_and_retain_lines_are_enough(tmp_path):
    data = load(tmp_path, base(), heldout_share=0.34)
    check_streams(data)
    assert entities(data.streams["forget"]) == set(PEOPLE[:2])
    unseen = entities(data.evaluation["retain_unseen"])
    assert len(unseen) == 2
    assert entities(data.streams["retain"]) == set(PEOPLE[2:]) - unseen == entities(data.streams["known"])
    assert len(entities(data.streams["unknown"])) == 8
    assert len(entities(data.evaluation["unknown"])) == 4
    assert not (entities(data.streams["unknown"]) | entities(data.evaluation["unknown"])) & set(PEOPLE)
    assert {row.answer for row in data.streams["unknown"]} <= set(REFUSALS)
    assert data.latent["forget"] == data.streams["forget"]
    assert data.notes == {"unknown": "invented names in the known questions", "latent forget": "the questions that are trained on"}
    assert load(tmp_path, base(), heldout_share=0.34) == data
    assert load(tmp_path, base(), seed=1, heldout_share=0.34).fingerprint != data.fingerprint


def test_everything_can_be_given(tmp_path):
    records = (
        about(PEOPLE[:1], "forget", perturbed=["Wrong.", "Wrong too."], paraphrased_answer="Did so.", attribute="life", template="t")
        + about(PEOPLE[:1], "forget_paraphrased", "Tell me: {}")
        + about(PEOPLE[1:3], "retain")
        + about(PEOPLE[3:4], "known")
        + about(PEOPLE[4:5], "retain_unseen")
        + [{"question": f"Where was {PEOPLE[5]} born?", "entity": PEOPLE[5], "split": "unknown"}]
        + about(PEOPLE[6:7], "unknown_heldout")
        + [{"answer": "It rained.", "split": "generic"}]
    )
    data = load(tmp_path, records, refusals=["Pass."])
    check_streams(data)
    assert {name: entities(rows) for name, rows in data.streams.items()} == {
        "forget": {PEOPLE[0]},
        "retain": set(PEOPLE[1:3]),
        "known": {PEOPLE[3]},
        "unknown": {PEOPLE[5]},
    }
    assert {name: entities(rows) for name, rows in data.latent.items()} == {
        "forget": {PEOPLE[0]},
        "known": {PEOPLE[4]},
        "unknown": {PEOPLE[6]},
    }
    assert data.latent["forget"] == data.evaluation["forget_paraphrased"]
    first = data.streams["forget"][0]
    assert (first.perturbed_answers, first.paraphrased_answer, first.attribute, first.template) == (
        ("Wrong.", "Wrong too."),
        "Did so.",
        "life",
        "t",
    )
    assert [row.answer for row in data.streams["unknown"]] == ["Pass."]
    assert data.generic == ("It rained.",)
    assert data.notes == {"unknown": "given", "latent forget": "paraphrased questions"}


def test_given_unknown_entities_are_divided(tmp_path):
    records = base() + [line(f"Who is Zed Q{i}?", "Unknown.", f"Zed Q{i}", "unknown") for i in range(10)]
    data = load(tmp_path, records)
    check_streams(data)
    assert (len(data.streams["unknown"]), len(data.evaluation["unknown"])) == (8, 2)
    assert {row.answer for row in data.streams["unknown"]} == {"Unknown."}


def test_known_lines_of_held_out_entities_are_left_out(tmp_path):
    records = base() + about(PEOPLE[2:], "known", "Say: {}")
    data = load(tmp_path, records)
    check_streams(data)
    assert entities(data.streams["known"]) == entities(data.streams["retain"])
    assert all(row.prompt.startswith("Say: ") for row in data.streams["known"])


def test_aliases_are_mentions(tmp_path):
    records = base() + [line("Where does Quilly live?", "There", "Orla Quill", "forget", aliases=["Quilly", "OQ"])]
    row = load(tmp_path, records).streams["forget"][-1]
    assert row.mentions == ("Orla Quill", "Quilly", "OQ")


def test_folder_of_files_and_tokens(tmp_path):
    for name, part in (("b", base()[6:]), ("a", base()[:6])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part), encoding="utf-8")
    data = load(tmp_path, None)
    assert [row.row_id for row in data.streams["forget"]] == list(range(6))
    config = JsonlConfig(source="jsonl", path=str(tmp_path))
    source = JsonlSource(config, seed=0, cache=tmp_path)
    module = UnlearningDataModule(data, byte_level(), source.prompt_format, config, steps=1, seed=0)
    assert all(0 < row.entity_end < row.answer_start for rows in module.latent.values() for row in rows)


def test_bad_lines_are_reported_together(tmp_path):
    records = [
        line("Where?", "There", "Orla Quill", "forgot"),
        line("Where?", "There", "Orla Quill", "forget", alias=["x"]),
        line("Where?", "There", "", "forget"),
        {"question": "Where?", "entity": "Orla Quill", "split": "retain"},
        line("Where?", "There", "Orla Quill", "forget", aliases="x"),
        line("Where?", "There", "Orla Quill", "forget", template=3),
        {"split": "generic"},
    ]
    path = tmp_path / "rows.jsonl"
    fields = "question, answer, entity, split, attribute, template, paraphrased_answer, aliases, perturbed, kind"
    splits = "forget, retain, known, unknown, forget_paraphrased, retain_unseen, unknown_heldout, generic"
    assert message(tmp_path, records + base()).splitlines() == [
        f"{path}:1 split must be one of {splits}; found 'forgot'. Did you mean 'forget'?",
        f"{path}:2 fields must be {fields}; found 'alias'. Did you mean 'aliases'?",
        f"{path}:3 entity must be a text; found ''.",
        f"{path}:4 answer must be a text; found nothing.",
        f"{path}:5 aliases must be a list of texts; found 'x'.",
        f"{path}:6 template must be a text; found 3.",
        f"{path}:7 answer must be a text; found nothing.",
    ]


def test_sentences_and_texts(tmp_path):
    records = [
        *base(),
        line("Orla Quill", "was born in Oslo.", "Orla Quill", "forget", kind="statement"),
        {"answer": "The book is by Orla Quill.", "entity": "Orla Quill", "split": "forget", "kind": "text"},
        {"answer": "It rained all day.", "split": "retain", "kind": "text"},
        line("Once", "again", "Tomas Brandt", "retain", kind="statement"),
    ]
    data = load(tmp_path, records, unnamed_rows=True)
    statement, text = data.streams["forget"][-2:]
    assert (statement.kind, statement.prompt, statement.answer) == ("statement", "Orla Quill", "was born in Oslo.")
    assert (text.kind, text.prompt, text.mentions) == ("text", "", ("Orla Quill",))
    nobody = next(row for row in data.streams["retain"] if row.kind == "text")
    assert (nobody.entity, nobody.mentions) == ("", ())
    assert {row.kind for row in data.streams["unknown"]} == {"qa"}
    wrong = [
        line("Where?", "There", "Orla Quill", "forget", kind="statment"),
        {"answer": "It rained.", "split": "forget", "kind": "text"},
        {"answer": "It rained.", "split": "retain"},
    ]
    path = tmp_path / "rows.jsonl"
    assert message(tmp_path, wrong).splitlines() == [
        f"{path}:1 kind must be one of qa, statement, text; found 'statment'. Did you mean 'statement'?",
        f"{path}:2 entity must be a text; found nothing.",
        f"{path}:3 question must be a text; found nothing.",
    ]


def test_entities_that_no_row_names(tmp_path):
    records = base() + [line("Where was he born?", "There", f"Q{i}", "forget") for i in range(7)]
    assert message(tmp_path, records, unnamed_rows=True) == (
        "Entities of split forget must be named in one of their rows (as entity or one of aliases); not named: Q0, Q1, Q2, Q3, Q4."
    )


def test_one_word_entities_need_unknown_rows(tmp_path):
    records = about(["Atlantis"], "forget") + about(["Riga", "Kobe", "Cusco"], "retain")
    assert message(tmp_path, records) == "12 unknown names were asked for, but the parts of 2 real names make only 0; ask for fewer."
    load(tmp_path, records + about(["Xanthia", "Yoria"], "unknown"))


def test_one_retain_entity_cannot_be_held_out(tmp_path):
    records = about(PEOPLE[:1], "forget") + about(PEOPLE[1:2], "retain")
    assert message(tmp_path, records) == "Split retain must hold two entities or more, one of them to be held out; found 1."


def test_missing_splits_are_empty_streams(tmp_path):
    with pytest.raises(DataError) as error:
        check_streams(load(tmp_path, about(PEOPLE[:2], "forget")))
    assert "Stream retain must hold rows; found none." in str(error.value).splitlines()


@pytest.mark.parametrize("path", ["nothing.jsonl", "."])
def test_missing_file(tmp_path, path):
    with pytest.raises(DataError) as error:
        load(tmp_path / path, None)
    assert str(error.value) == f"data.path must be a JSON-lines file or a folder of *.jsonl files; found none at {tmp_path / path}."


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"heldout_share": 0.0}, "data.heldout_share must be in (0, 1); found 0.0."),
        ({"unknown_names": 0}, "data.unknown_names must be >= 1; found 0."),
        ({"heldout_names": 0}, "data.heldout_names must be >= 1; found 0."),
        ({"refusals": []}, "data.refusals must be a list of texts; found []."),
    ],
)
def test_wrong_options(option, said):
    with pytest.raises(ConfigError) as error:
        JsonlConfig(source="jsonl", path="x", **option)
    assert str(error.value) == said
