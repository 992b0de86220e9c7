"""The TOFU source on made-up rows, and on TOFU's own where UNLEARN_SHARED says they lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.sources.fake_tofu import AUTHORS, NAMELESS, NICKNAMED, name_of, shared_tofu, write_tofu
from tests.data.tokenizers_zoo import byte_level
from unlearn.data.anchors import REFUSALS
from unlearn.data.checks import check_streams
from unlearn.data.entities import find_mention, occurrences
from unlearn.data.module import UnlearningDataModule
from unlearn.data.sources.tofu import TofuConfig, TofuSource
from unlearn.errors import ConfigError, DataError
from unlearn.registry import find
from unlearn.types import NO_ENTITY

SMALL = {"unknown_names": 12, "heldout_names": 6}
EVALUATION = {"forget", "forget_paraphrased", "retain", "retain_unseen", "unknown", "real_authors", "world_facts"}


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    return write_tofu(tmp_path_factory.mktemp("tofu"))


@pytest.fixture(scope="session", params=["made up", "shared"])
def root(request, made_up, tmp_path_factory):
    return made_up if request.param == "made up" else shared_tofu(tmp_path_factory.mktemp("shared"))


def source(root, seed=0, **options):
    return TofuSource(TofuConfig(source="tofu", root=str(root), **{**SMALL, **options}), seed=seed, cache=Path("unused"))


def entities(rows):
    return {row.entity for row in rows}


def test_registry_finds_it():
    entry = find("source", "tofu")
    assert entry.load() is TofuSource
    assert entry.facts["summary"] == TofuSource.summary


def test_every_author_is_named_as_written(made_up):
    names = [author.name for author in source(made_up).authors]
    assert names == [f"author {n}" if n == NAMELESS else name_of(n) for n in range(AUTHORS)]
    assert names[NICKNAMED].split()[1] == "(Teddy)"


def test_names_are_sensible(root):
    """Every author but one is named, differently, by two to five words that 17 of the 20 rows hold."""
    authors = source(root).authors
    named = [author for author in authors if author.wordings]
    assert len(named) == len(authors) - 1
    assert len({author.name for author in named}) == len(named)
    for author in named:
        assert 2 <= len(author.name.split()) <= 5
        holding = [row for row in author.rows if occurrences(row.prompt + " " + row.answer, author.name)]
        assert len(holding) >= 17
        assert sum(bool(row.mentions) for row in author.rows) >= 17


def test_known_names_of_the_shared_rows(root):
    names = {author.name for author in source(root).authors}
    real = {
        "Basil Mahfouz Al-Kuwaiti",
        "Jaime Vasquez",
        "Alejandro (Alex) Fuentes",
        "Femke Van der Veen",
        "Patrick Ryan O'Donnell",
        "Jina An",
    }
    assert real <= names or name_of(0) in names


@pytest.mark.parametrize("split", ["forget01", "forget05", "forget10"])
def test_streams_hold_what_they_say(root, split):
    made = source(root, split=split)
    data = made.load()
    check_streams(data)
    lines = [json.loads(line) for line in (root / f"{split}.json").read_text(encoding="utf-8").splitlines()]
    assert [(row.prompt, row.answer) for row in data.evaluation["forget"]] == [(line["question"], line["answer"]) for line in lines]
    held = {row.row_id for row in data.latent["forget"]}
    assert {row.row_id for row in data.streams["forget"]} == {row.row_id for row in data.evaluation["forget"]} - held
    assert len(held) == 3 * len(entities(data.streams["forget"]))
    assert set(data.evaluation) == EVALUATION
    assert len(entities(data.streams["unknown"])) == 12
    assert len(entities(data.latent["unknown"])) == 6
    assert {row.answer for row in data.streams["unknown"]} == set(REFUSALS)
    total = len(made.groups.forget) + len(made.groups.retain) + len(made.groups.unseen)
    assert total == len(made.authors)
    assert len(made.groups.unseen) == round(0.1 * (total - len(made.groups.forget)))


def test_held_out_questions_are_asked_nowhere_in_training(root):
    made = source(root)
    data = made.load()
    wordings = {row_id: w.text for author in made.authors for row_id, w in author.wordings.items()}
    templates = {w.template: w.text for author in made.authors for w in author.wordings.values()}
    trained = {templates[row.template] for rows in data.streams.values() for row in rows if row.template in templates}
    for name in ("forget", "known", "unknown"):
        assert data.latent[name]
        assert not {templates[row.template] for row in data.latent[name]} & trained
    assert trained < set(wordings.values())


def test_anchors_ask_the_same_questions(root):
    """Known and unknown anchors differ in the name only, and every anchor names its entity in the question."""
    data = source(root).load()
    known = {row.template: row for row in data.streams["known"]}
    for row in data.streams["unknown"]:
        real = known[row.template]
        assert row.prompt == real.prompt.replace(real.entity, row.entity)
    for rows in (data.streams["known"], data.streams["unknown"], *data.latent.values()):
        for row in rows:
            assert not find_mention(row.prompt, "", (row.entity,)).in_answer
            assert '"' not in row.prompt


def test_unknown_names_bear_no_part_of_a_forget_author(root):
    made = source(root)
    data = made.load()
    parts = {word for author in made.authors if author not in made.groups.forget for word in author.name.split()}
    forgotten = {word for author in made.groups.forget for word in author.name.split()} - parts
    for row in (*data.streams["unknown"], *data.latent["unknown"]):
        assert not forgotten & set(row.entity.split())
        assert row.entity not in {author.name for author in made.authors}


def test_loading_is_deterministic_in_config_and_seed(root):
    first = source(root).load()
    assert source(root).load() == first
    assert source(root, seed=1).load().fingerprint != first.fingerprint
    assert source(root, unknown_names=13).load().fingerprint != first.fingerprint
    assert entities(source(root, seed=1).load().streams["forget"]) == entities(first.streams["forget"])


def test_paraphrased_questions_and_perturbed_answers_come_along(root):
    for split in ("forget01", "forget10"):
        data = source(root, split=split).load()
        plain = {row.row_id: row for row in data.evaluation["forget"]}
        assert len(data.evaluation["forget_paraphrased"]) == len(plain)
        for row in data.evaluation["forget_paraphrased"]:
            other = plain[row.row_id - 1_000_000]
            assert (row.answer, row.entity) == (other.answer, other.entity)
            assert row.prompt != other.prompt
            assert row.perturbed_answers
            assert row.paraphrased_answer
        assert all(row.perturbed_answers for row in data.evaluation["forget"])
        assert all(row.perturbed_answers for row in data.evaluation["world_facts"])
        assert data.notes["forget_paraphrased"] == "TOFU's paraphrased questions"


def test_options_of_smaller_runs(root):
    made = source(root, max_authors=10, unseen_share=0.3, eval_rows=25, heldout_questions=2)
    data = made.load()
    check_streams(data)
    assert (len(made.groups.retain), len(made.groups.unseen)) == (7, 3)
    assert {name: len(rows) for name, rows in data.evaluation.items() if name in ("retain", "retain_unseen")} == {
        "retain": 25,
        "retain_unseen": 25,
    }
    assert len(data.latent["known"]) == 6
    assert len(data.evaluation["forget"]) == len(made.groups.forget) * 20


def test_no_held_out_questions_gives_the_full_forget_set(root):
    data = source(root, heldout_questions=0).load()
    check_streams(data)
    assert data.streams["forget"] == data.evaluation["forget"]
    assert len(data.latent["forget"]) > 5 * len(entities(data.streams["forget"]))


def test_rows_tokenise(root):
    made = source(root, max_authors=8)
    data = made.load()
    module = UnlearningDataModule(data, byte_level(), made.prompt_format, made.config, steps=1, seed=0)
    for name in ("forget", "known", "unknown"):
        for row in module.latent[name]:
            assert 0 < row.entity_end < row.answer_start
    assert all(row.entity_end == NO_ENTITY for row in module.evaluation["world_facts"])
    assert len(module.generic) == len(data.evaluation["world_facts"])


def test_generic_texts_and_refusals_of_your_own(made_up, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("One text.\n\nAnother text.\n", encoding="utf-8")
    data = source(made_up, generic=str(texts), refusals=["Pass."]).load()
    assert data.generic == ("One text.", "Another text.")
    assert {row.answer for row in data.streams["unknown"]} == {"Pass."} == set(data.refusals)


def test_optional_files_may_be_missing(made_up, tmp_path):
    for name in ("full", "forget10"):
        (tmp_path / f"{name}.json").write_text((made_up / f"{name}.json").read_text())
    data = source(tmp_path).load()
    check_streams(data)
    assert set(data.evaluation) == EVALUATION - {"real_authors", "world_facts"}
    assert data.evaluation["forget_paraphrased"] == data.latent["forget"]
    assert data.notes["forget_paraphrased"] == "held-out questions"
    assert data.generic == ()


def test_tables_from_the_hub(made_up, tmp_path, monkeypatch):
    """A folder laid out like the hub repository is read through the same client as the hub itself."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_tofu(tmp_path / "hub")
    card = "".join(f"- config_name: {path.stem}\n  data_files: {path.name}\n" for path in sorted(folder.glob("*.json")))
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    config = TofuConfig(source="tofu", hub=str(folder), **SMALL)
    data = TofuSource(config, seed=0, cache=Path("unused")).load()
    assert data.fingerprint == source(made_up).load().fingerprint


def test_hub_that_does_not_answer(tmp_path):
    config = TofuConfig(source="tofu", hub=str(tmp_path / "nowhere"), **SMALL)
    with pytest.raises(DataError) as error:
        TofuSource(config, seed=0, cache=Path("unused")).load()
    assert str(error.value).startswith("data.hub must give TOFU's full, or data.root a folder with its files; ")


def broken(tmp_path, made_up, name, change):
    for path in made_up.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(change(text) if path.stem == name else text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        source(tmp_path).load()
    return str(error.value)


def test_missing_file_is_named_with_its_origin(tmp_path):
    with pytest.raises(DataError) as error:
        source(tmp_path).load()
    assert str(error.value) == (
        f"data.root must hold TOFU's full.json (from https://huggingface.co/datasets/locuslab/tofu); found no {tmp_path}/full.json."
    )


def test_wrong_line_count(tmp_path, made_up):
    message = broken(tmp_path, made_up, "full", lambda text: text.split("\n", 1)[1])
    assert message == "TOFU's full.json must hold 20 rows for each author; found 479 rows."


def test_forget_file_of_other_rows(tmp_path, made_up):
    message = broken(tmp_path, made_up, "forget10", lambda text: "".join(text.splitlines(keepends=True)[:30]))
    assert message == "TOFU's forget10.json must hold all rows of some authors of full.json; found 30 rows of it."


def test_wrong_lines(tmp_path, made_up):
    message = broken(tmp_path, made_up, "full", lambda text: text.replace('"answer"', '"reply"', 1))
    assert message == f"{tmp_path}/full.json:1 answer must be a text; found nothing."


def test_too_few_authors_to_hold_some_out(made_up):
    with pytest.raises(DataError, match=r"^data.unseen_share must leave an author to retain; found 2 unseen of 2\.$"):
        source(made_up, max_authors=2, unseen_share=0.9).load()


def test_too_many_unknown_names(made_up):
    with pytest.raises(
        DataError, match=r"^5006 unknown names were asked for, but the parts of \d+ real names make only \d+\; ask for fewer.$"
    ):
        source(made_up, unknown_names=5000).load()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"split": "forget1"}, "data.split must be one of forget01, forget05, forget10; found 'forget1'. Did you mean 'forget10'?"),
        ({"max_authors": 1}, "data.max_authors must be >= 2; found 1."),
        ({"unseen_share": 1.0}, "data.unseen_share must be in (0, 1); found 1.0."),
        ({"heldout_questions": -1}, "data.heldout_questions must be >= 0; found -1."),
        ({"unknown_names": 0}, "data.unknown_names must be >= 1; found 0."),
        ({"heldout_names": 0}, "data.heldout_names must be >= 1; found 0."),
        ({"eval_rows": 0}, "data.eval_rows must be >= 1; found 0."),
        ({"refusals": [" "]}, "data.refusals must be a list of texts; found [' ']."),
        ({"max_length": 1}, "data.max_length must be >= 2; found 1."),
    ],
)
def test_wrong_options(option, message):
    with pytest.raises(ConfigError) as error:
        TofuConfig(source="tofu", **option)
    assert str(error.value) == message


def test_holdout_rows_are_those_of_the_splits_own_table(made_up, tmp_path):
    for path in made_up.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    lines = [{"question": f"Who is Nobody {i}?", "answer": "None."} for i in range(3)]
    (tmp_path / "holdout05.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = source(tmp_path, split="forget05").load()
    assert [(row.prompt, row.answer) for row in data.holdout] == [(line["question"], line["answer"]) for line in lines]
    assert not {row.row_id for row in data.holdout} & {row.row_id for rows in data.evaluation.values() for row in rows}
    assert source(tmp_path, split="forget10").load().holdout == source(made_up, split="forget05").load().holdout == ()
    assert data.fingerprint != source(made_up, split="forget05").load().fingerprint
