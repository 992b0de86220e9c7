"""KnowUnDo: private facts of some authors, the general facts about them, and everybody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.sources.fake_benchmarks import dump, person, write_knowundo
from tests.data.sources.shared import shared
from unlearn.data.checks import check_streams
from unlearn.data.sources.knowundo import KINDS, SPLITS, KnowUnDoConfig, KnowUnDoSource, find_authors, of_authors
from unlearn.errors import ConfigError, DataError
from unlearn.types import EntityData, Row


def source(root: Path, **options: object) -> KnowUnDoSource:
    usual = {"unknown_names": 8, "heldout_names": 4, "forget_authors": 3}
    return KnowUnDoSource(KnowUnDoConfig(source="knowundo", root=str(root), **{**usual, **options}), seed=0, cache=Path("unused"))  # type: ignore[arg-type]


def load(root: Path, **options: object) -> EntityData:
    return source(root, **options).load()


@pytest.fixture(scope="module", params=["made up", "shared"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    folder = tmp_path_factory.mktemp("knowundo")
    return (write_knowundo(folder), False) if request.param == "made up" else shared("knowundo", write_knowundo, folder)


def test_every_author_is_found(files: tuple[Path, bool]) -> None:
    root, real = files
    made = source(root)
    tables = {kind: [row for split in SPLITS for row in made.table(kind, split, 0)] for kind in KINDS}
    authors = find_authors(tables["unlearn"], tables["retention"])
    assert len(authors) == (54 if real else 10)
    assert authors[:2] == (["Isabella Marquez", "Hiro Tanaka"] if real else [person(0), person(1)])


def test_streams_hold_what_they_say(files: tuple[Path, bool]) -> None:
    root, real = files
    data = load(root)
    check_streams(data)
    target = {row.entity for row in data.streams["forget"]}
    assert len(target) == 3
    for name in ("forget", "forget_paraphrased", "retention"):
        assert {row.entity for row in data.evaluation[name]} == target
    kept = {row.entity for row in (*data.streams["retain"], *data.evaluation["retain_unseen"])}
    assert not kept & target
    assert len(kept) == (51 if real else 7)


def test_rows_come_from_the_split_they_say(files: tuple[Path, bool]) -> None:
    root, _ = files
    data = load(root)
    for name, file in (("forget", "privacy_unlearn_train"), ("forget_paraphrased", "privacy_unlearn_val")):
        rows = {(row["text"], row["labels"]) for row in json.loads((root / f"{file}.json").read_text())}
        assert {(row.prompt, row.answer) for row in data.evaluation[name]} <= rows


def test_rows_belong_to_the_author_before_if_they_name_none() -> None:
    rows = [Row(row_id=i, entity="", prompt=text, answer="x") for i, text in enumerate(["Who is Ann Lee?", "And her mail?", "Bob Moss?"])]
    made = of_authors(rows, ["Ann Lee", "Bob Moss"])
    assert [row.entity for row in made] == ["Ann Lee", "Ann Lee", "Bob Moss"]
    assert [bool(row.mentions) for row in made] == [True, False, True]
    with pytest.raises(DataError, match="^KnowUnDo's rows must name an author; found none in 'And her mail[?]'.$"):
        of_authors(rows[1:], ["Ann Lee"])


def test_copyright_rows_and_the_hubs_files(tmp_path: Path) -> None:
    write_knowundo(tmp_path)
    data = load(tmp_path, domain="copyright")
    check_streams(data)
    assert len(data.streams["forget"]) == len(data.evaluation["forget_paraphrased"]) == 8
    assert len(data.streams["retain"]) + len(data.evaluation["retain_unseen"]) == 16
    for kind in KINDS:
        tables = {split: json.loads((tmp_path / f"privacy_{kind}_{split}.json").read_text()) for split in SPLITS}
        dump(tmp_path / "hub" / "privacy" / f"{kind}.json", tables)
        dump(tmp_path / "listed" / "privacy" / f"{kind}.json", [tables])
    assert load(tmp_path / "hub") == load(tmp_path / "listed") == load(tmp_path)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    write_knowundo(tmp_path)
    dump(tmp_path / "copyright" / "unlearn.json", {"train": []})
    with pytest.raises(DataError, match="copyright/unlearn.json must hold a list 'val'; found dict."):
        load(tmp_path, domain="copyright")
    dump(tmp_path / "privacy_unlearn_val.json", [{"text": "x"}])
    with pytest.raises(DataError, match="privacy_unlearn_val.json, row 0: labels must be a text; found nothing."):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "people"}, "data.domain must be one of privacy, copyright"),
        ({"forget_authors": 0}, "data.forget_authors must be >= 1"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KnowUnDoConfig(source="knowundo", **options)  # type: ignore[arg-type]


def test_somebody_has_to_be_left(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^data.forget_authors must be at most 8; found 9.$"):
        load(write_knowundo(tmp_path), forget_authors=9)
