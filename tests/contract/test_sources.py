"""Every data source keeps the contract: sound streams, repeatable rows, and a fingerprint that tells data apart."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources.fake_benchmarks import FAKES
from tests.tiny import tiny_tokenizer
from unlearn.data.checks import check_streams, fingerprinted, sets_of
from unlearn.data.entities import find_mention
from unlearn.data.module import UnlearningDataModule
from unlearn.data.sources.base import Source
from unlearn.errors import DataError
from unlearn.registry import entries
from unlearn.types import NO_ENTITY, STREAMS, EntityData

ONE_OF = {
    "knowundo": [{"domain": "copyright"}],
    "muse": [{"forget": "scal/forget_1"}],
    "wikidata": [{"entity_type": kind} for kind in ("movie", "city", "song")],
    "wmdp": [{"train": "questions"}, {"domains": ["chem", "bio"], "train": "questions"}, {"domains": ["cyber"]}],
    "rwku": [{"train": "probes"}, {"train": "positive_llama3", "by_type": True}],
    "mmlu": [{"header": False, "forget": ["anatomy", "virology"], "retain": ["philosophy", "sociology"]}],
}
CASES = [(name, {}) for name in FAKES] + [(name, options) for name, some in ONE_OF.items() for options in some]
CHANGES = {"seed": 1, "unknown_names": 20, "heldout_names": 4, "refusals": ["Pass."]}


def made(name: str, root: Path, seed: int = 0, **options: Any) -> Source:
    write, usual = FAKES[name]
    if not root.exists() or not any(root.iterdir()):
        write(root)
    cls = entries("source")[name].load()
    place = "path" if name == "jsonl" else "root"
    return cls(cls.Config(**{"source": name, place: str(root), **usual, **options}), seed=seed, cache=root / "cache")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def loaded(name: str, roots: Path, **options: Any) -> EntityData:
    return made(name, roots / name, **options).load()


def test_every_source_is_here() -> None:
    built = {name for name, entry in entries("source").items() if entry.module.startswith("unlearn.world")}
    assert set(entries("source")) == set(FAKES) | built


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_streams_are_sound(name: str, options: dict[str, Any], roots: Path) -> None:
    data = loaded(name, roots, **options)
    check_streams(data)
    assert list(data.streams) == list(STREAMS)
    assert {"forget", "retain", "retain_unseen", "unknown"} <= set(data.evaluation)
    assert all(rows for _, _, rows in sets_of(data))
    assert data.generic
    assert data.refusals
    assert data.members in data.evaluation
    assert all(isinstance(text, str) and text for text in (*data.notes, *data.notes.values()))


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_ids_stand_for_rows_and_streams_repeat_none(name: str, options: dict[str, Any], roots: Path) -> None:
    data = loaded(name, roots, **options)
    for _, _, rows in sets_of(data):
        assert len({row.row_id for row in rows}) == len(rows)
    known = {row.row_id: row for _, _, rows in sets_of(data) for row in rows}
    assert all(known.get(row.row_id, row) == row for row in data.holdout)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_rows_become_tokens_with_the_entity_before_the_answer(name: str, options: dict[str, Any], roots: Path) -> None:
    source = made(name, roots / name, **options)
    data = source.load()
    config = replace(source.config, max_length=4096)
    tokenizer = tiny_tokenizer()
    module = UnlearningDataModule(data, tokenizer, source.prompt_format, config, steps=1, seed=0)
    for group in ("forget", "known", "unknown"):
        for row, tokens in zip(data.latent[group], module.latent[group], strict=True):
            assert NO_ENTITY < tokens.entity_end < tokens.answer_start
            before = tokenizer.decode(tokens.ids[: tokens.entity_end + 1])
            span = find_mention(row.prompt, "", row.mentions)
            assert span is not None
            assert row.prompt[span.start : span.end] in before
            assert before.rstrip("'s. ?,\n").endswith(row.prompt[span.start : span.end].rstrip("'s. ?,"))


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_unknown_answers_are_refusals(name: str, options: dict[str, Any], roots: Path) -> None:
    data = loaded(name, roots, **options)
    assert {row.answer for row in (*data.streams["unknown"], *data.evaluation["unknown"])} <= set(data.refusals)


@pytest.mark.parametrize("name", list(FAKES))
def test_rows_follow_from_configuration_and_seed(name: str, roots: Path) -> None:
    first = loaded(name, roots)
    assert loaded(name, roots) == first
    for key, value in CHANGES.items():
        other = loaded(name, roots, **{key: value})
        assert other.fingerprint != first.fingerprint, key


@pytest.mark.parametrize("name", list(FAKES))
def test_the_fingerprint_covers_all_rows(name: str, roots: Path) -> None:
    data = loaded(name, roots)
    row = data.streams["retain"][0]
    changed = [
        replace(data, streams={**data.streams, "retain": (replace(row, answer="x"), *data.streams["retain"][1:])}),
        replace(data, evaluation={**data.evaluation, "forget": data.evaluation["forget"][1:]}),
        replace(data, latent={**data.latent, "known": ()}),
        replace(data, generic=("x",)),
        replace(data, refusals=("x",)),
        replace(data, holdout=(*data.holdout, row)),
    ]
    prints = {fingerprinted(other).fingerprint for other in changed}
    assert len(prints) == len(changed)
    assert data.fingerprint not in prints
    assert fingerprinted(replace(data, notes={})).fingerprint == data.fingerprint


@pytest.mark.parametrize("name", sorted(set(FAKES) - {"jsonl"}))
def test_a_missing_file_is_named_with_its_origin(name: str, tmp_path: Path) -> None:
    cls = entries("source")[name].load()
    with pytest.raises(DataError) as error:
        cls(cls.Config(source=name, root=str(tmp_path / "nowhere")), seed=0, cache=tmp_path).load()
    message = str(error.value)
    assert message.startswith("data.root must hold ")
    assert "(from https://" in message
    assert f"found no {tmp_path / 'nowhere'}/" in message


@pytest.mark.parametrize("name", sorted(set(FAKES) - {"jsonl", "wikidata"}))
def test_a_hub_that_does_not_answer_is_named(name: str, tmp_path: Path) -> None:
    cls = entries("source")[name].load()
    config = cls.Config(source=name, hub=str(tmp_path / "nowhere"), **({"mmlu_root": str(tmp_path)} if name == "wmdp" else {}))
    if name == "wmdp":
        FAKES["mmlu"][0](tmp_path)
        config = replace(config, train="questions")
    with pytest.raises(DataError, match="data.hub must give .*, or data.root a folder with its files; "):
        cls(config, seed=0, cache=tmp_path).load()


@pytest.mark.parametrize("name", list(FAKES))
def test_every_option_has_a_usable_default(name: str) -> None:
    cls = entries("source")[name].load()
    given = {"path": "x"} if name == "jsonl" else {}
    config = cls.Config(source=name, **given)
    assert {info.name for info in fields(config)} >= {"unknown_names", "heldout_names", "refusals"}
