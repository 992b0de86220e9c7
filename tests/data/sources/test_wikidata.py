"""Wikidata entities: names, attributes and questions of the four types."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.sources.fake_benchmarks import dump, person, term, write_wikidata
from tests.data.sources.shared import shared
from unlearn.data.checks import check_streams
from unlearn.data.sources.wikidata import KINDS, WikidataConfig, WikidataSource, read_wikidata, type_of, wikidata_facts
from unlearn.errors import ConfigError, DataError
from unlearn.functional.attributes import RULES


def source(root: Path, kind: str = "player", **options: object) -> WikidataSource:
    usual = {"unknown_names": 8, "heldout_names": 4, "forget_entities": 3, "max_entities": 30}
    config = WikidataConfig(source="wikidata", root=str(root), entity_type=kind, **{**usual, **options})  # type: ignore[arg-type]
    return WikidataSource(config, seed=0, cache=Path("unused"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wikidata(tmp_path_factory.mktemp("wikidata"))


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_attribute_is_asked_about(root: Path, kind: str) -> None:
    facts = source(root, kind).facts()
    assert {fact.attribute for fact in facts} == set(KINDS[kind].attributes)
    for fact in facts:
        attribute = KINDS[kind].attributes[fact.attribute]
        assert fact.question == attribute.question.format(fact.entity)
        assert fact.reworded == attribute.reworded.format(fact.entity) != fact.question
        assert fact.rule in RULES


def test_values(root: Path) -> None:
    players = {(fact.entity, fact.attribute): fact.answers for fact in source(root).facts()}
    assert players[person(2), "teams"] == (f"{term(2)} United", f"{term(3)} City")
    assert players[person(2), "year of birth"] == ("1952",)
    cities = {(fact.entity, fact.attribute): fact.answers for fact in source(root, "city").facts()}
    assert cities[term(7).title(), "coordinates"] == ("7.5, 7.25",)


def test_names_that_are_none_or_not_unique_are_left_out(root: Path) -> None:
    names = {fact.entity for fact in source(root).facts()}
    assert names == {person(i) for i in range(40)} - {person(1)}


def test_missing_values_are_passed_over() -> None:
    record = {"human": "x/Q1", "humanLabel": "Ann Lee", "placebirthLabel": "", "teamslist": None, "datebirthyearLabel": "1979"}
    assert [fact.attribute for fact in wikidata_facts([record], "player")] == ["year of birth"]


@pytest.mark.parametrize("kind", ["player", "city"])
def test_real_entities(kind: str, tmp_path: Path) -> None:
    folder, real = shared("wikidata", write_wikidata, tmp_path)
    made = source(folder, kind)
    facts = made.facts()
    if real:
        names = list(dict.fromkeys(fact.entity for fact in facts))
        assert len(names) == {"player": 7547, "city": 8080}[kind]
        wanted = {
            "player": ("Goran Jeretin", "place of birth", ("Nikšić",)),
            "city": ("Leeuwarden", "coordinates", ("5.783333333, 53.2",)),
        }[kind]
        assert wanted in [(fact.entity, fact.attribute, fact.answers) for fact in facts]
    data = made.load()
    check_streams(data)
    assert len({row.entity for row in data.streams["forget"]}) == 3
    assert len({row.entity for row in (*data.streams["retain"], *data.evaluation["retain_unseen"])}) == 30


def test_types_are_told_by_their_fields(root: Path) -> None:
    for kind in KINDS:
        assert read_wikidata(root / f"{kind}.json") == source(root, kind).facts()
    assert type_of({"name": "x"}) is None


def test_what_cannot_be_read_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        WikidataSource(WikidataConfig(source="wikidata"), seed=0, cache=tmp_path).load()
    assert str(error.value) == "data.root must be a folder with player.json (from https://github.com/javiferran/sae_entities); found null."
    dump(tmp_path / "odd.json", [{"name": "Ann Lee"}])
    with pytest.raises(DataError, match="odd.json must hold records with one of humanLabel, filmLabel, cityLabel, songLabel; found "):
        read_wikidata(tmp_path / "odd.json")
    with pytest.raises(DataError, match="odd.json must hold entities with humanLabel and attributes; found none."):
        read_wikidata(tmp_path / "odd.json", "player")
    with pytest.raises(ConfigError, match="data.entity_type must be one of player, movie, city, song"):
        WikidataConfig(source="wikidata", entity_type="book")
