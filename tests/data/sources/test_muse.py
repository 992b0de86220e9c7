"""MUSE: texts in pieces, questions, passages, and membership texts against ones that no model saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.sources.fake_benchmarks import dump, person, write_muse
from unlearn.data.checks import check_streams
from unlearn.data.sources.muse import MuseConfig, MuseSource
from unlearn.errors import ConfigError, DataError
from unlearn.types import EntityData


def load(root: Path, **options: object) -> EntityData:
    config = MuseConfig(
        source="muse", root=str(root), **{"unknown_names": 5, "heldout_names": 3, "text_words": 40, "stem_words": 8, **options}
    )  # type: ignore[arg-type]
    return MuseSource(config, seed=0, cache=Path("unused")).load()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_muse(tmp_path_factory.mktemp("muse"))


def test_texts_are_learnt_in_pieces(root: Path) -> None:
    data = load(root)
    check_streams(data)
    text = f"{person(0)} came home. " + "Then the rain fell on the town. " * 15
    mine = [row for row in data.streams["forget"] if row.entity == "forget text 0"]
    assert " ".join(f"{row.prompt} {row.answer}" for row in mine) == text.strip()
    assert mine[0].prompt == f"{person(0)} came home. Then the rain fell"
    assert mine[0].mentions == (person(0),)
    assert [row.mentions for row in mine[1:]] == [()] * (len(mine) - 1)
    assert {row.entity[:11] for row in data.streams["retain"]} == {"retain text"}


def test_the_benchmarks_sets(root: Path) -> None:
    data = load(root)
    assert [len(data.evaluation[name]) for name in ("forget", "retain", "verbmem", "privleak", "privleak_retain")] == [16, 16, 1, 5, 5]
    row = data.evaluation["forget"][3]
    assert (row.prompt, row.kind, row.entity) == (f"Where does {person(3)} live?", "qa", person(3))
    passage = data.evaluation["verbmem"][0]
    assert (passage.prompt, passage.answer) == (f"{person(0)} came home. Then", "the rain fell on the town.")
    assert (data.members, len(data.holdout)) == ("privleak", 5)
    assert (data.holdout[2].prompt, data.holdout[2].answer) == ("A", "text of holdout, number 2, that goes on.")


def test_half_of_the_retain_questions_are_anchors(root: Path) -> None:
    data = load(root)
    known, unseen = ({row.prompt for row in rows} for rows in (data.streams["known"], data.evaluation["retain_unseen"]))
    assert known | unseen == {row.prompt for row in data.evaluation["retain"]}
    assert not known & unseen
    assert len(known) == len(unseen) == 8


def test_passages_may_come_whole(root: Path, tmp_path: Path) -> None:
    write_muse(tmp_path)
    dump(tmp_path / "verbmem" / "forget.json", [{"text": "one two three four"}, {"text": "short"}])
    passages = load(tmp_path, prompt_words=2).evaluation["verbmem"]
    assert [(row.prompt, row.answer) for row in passages] == [("one two", "three four")]


def test_other_texts_to_forget_and_other_folders(root: Path, tmp_path: Path) -> None:
    write_muse(tmp_path / "data" / "books")
    data = load(tmp_path, corpus="books", forget="scal/forget_1")
    assert len({row.entity for row in data.streams["forget"]}) == 2
    with pytest.raises(DataError) as error:
        load(tmp_path, corpus="news")
    assert str(error.value) == (
        "data.root must hold MUSE's raw/retain1.json (from https://huggingface.co/datasets/muse-bench/MUSE-News); "
        f"found no {tmp_path}/raw/retain1.json."
    )
    with pytest.raises(DataError, match="MUSE-Books"):
        load(tmp_path / "none", corpus="books")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "film"}, "data.corpus must be one of news, books"),
        ({"forget": "raw/retain1"}, "data.forget must be one of raw/forget, "),
        ({"prompt_words": 0}, "data.prompt_words must be >= 1"),
        ({"stem_words": 0}, "data.stem_words must be >= 1"),
        ({"text_words": 8, "stem_words": 8}, "data.text_words must be > data.stem_words"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MuseConfig(source="muse", **options)  # type: ignore[arg-type]
