"""Rows for tuning share nothing with what the test measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.test_sources import made
from tests.data.sources.fake_benchmarks import FAKES
from unlearn.config.fingerprint import fingerprint
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.data.checks import check_streams, sets_of
from unlearn.data.entities import occurrences
from unlearn.data.validation import LEAST, MOST, validation
from unlearn.errors import ConfigError, DataError
from unlearn.types import EntityData, Row
from unlearn.world.source import WorldConfig, WorldSource

HELD_OUT = (("evaluation", "forget"), ("evaluation", "forget_paraphrased"), ("evaluation", "retain_unseen"), ("evaluation", "unknown")) + (
    ("latent", "forget"),
    ("latent", "known"),
    ("latent", "unknown"),
)

TOO_SMALL = {"muse", "popqa", "wmdp"}
"""Sources whose rows are about texts or subjects, or too few entities to divide again."""


def world(partition: str, seed: int = 0, **options: int) -> WorldSource:
    return WorldSource(WorldConfig(partition=partition, **options), seed=seed, cache=Path("unused"))


def entities(data: EntityData, part: str, name: str) -> set[str]:
    return {row.entity for row in getattr(data, part).get(name, ()) if row.entity}


def assert_nothing_of_the_test(test: EntityData, tuning: EntityData) -> None:
    """No entity that the test forgets or holds out, and no row with a wording it holds out, is anywhere in the rows for tuning."""
    hidden = set().union(*(entities(test, part, name) for part, name in HELD_OUT)) | entities(test, "streams", "forget")
    asked = {row.prompt for part, name in HELD_OUT for row in getattr(test, part).get(name, ()) if row.entity and row.entity in row.prompt}
    for part, name, rows in sets_of(tuning):
        assert not {row.entity for row in rows} & hidden, (part, name)
        assert not {row.prompt for row in rows if row.entity and row.entity in row.prompt} & asked, (part, name)
    forgotten = entities(tuning, "streams", "forget")
    for _, name, rows in sets_of(tuning):
        if not name.startswith("forget"):
            assert not any(occurrences(row.prompt, entity) for row in rows for entity in forgotten if entity in row.prompt)


@pytest.mark.parametrize("seed", [0, 3])
def test_world(seed: int) -> None:
    test, tuning = world("test", seed).serve(), world("validation", seed).serve()
    check_streams(tuning)
    assert_nothing_of_the_test(test, tuning)
    reworded = {row.template for row in tuning.evaluation["forget_paraphrased"]}
    assert reworded
    assert not reworded & {row.template for rows in tuning.streams.values() for row in rows}
    assert not reworded & {row.template for row in test.evaluation["forget_paraphrased"]}
    assert {row.template for row in tuning.latent["forget"]} == reworded
    assert len(entities(tuning, "streams", "forget")) == len(entities(test, "streams", "forget"))
    assert not set(tuning.generic) & set(test.generic)
    assert not {row.answer for row in tuning.streams["retain"]} & set(tuning.generic)
    assert max(len(rows) for name, rows in tuning.evaluation.items() if not name.startswith("forget")) <= MOST
    assert tuning.holdout == ()


def test_a_world_without_the_key_is_what_it_was() -> None:
    source = world("test")
    assert source.serve() == source.load()
    assert source.load().fingerprint == "a33e532214bb93b4"
    assert world("validation").serve().fingerprint == world("validation").serve().fingerprint != source.load().fingerprint


def test_the_key_counts_in_a_fingerprint_only_where_it_changes_something() -> None:
    tree = {"name": "x", "data": {"source": "world"}, "method": {"name": "none"}}
    made_before = load_config(tree, schemas=plugin_schemas())
    changed = load_config(tree, ["data.partition=validation"], schemas=plugin_schemas())
    assert fingerprint(made_before) == fingerprint(load_config(tree, ["data.partition=test"], schemas=plugin_schemas()))
    assert fingerprint(made_before) != fingerprint(changed)
    with pytest.raises(ConfigError, match=r"data\.partition must be .*test.*found 'validaton'"):
        load_config(tree, ["data.partition=validaton"], schemas=plugin_schemas())
    with pytest.raises(ConfigError, match=r"data\.partition must be test where the source's gold model"):
        load_config(tree, ["data.partition=validation", "evaluation.gold=source"], schemas=plugin_schemas())


def test_worlds_too_small_are_refused() -> None:
    with pytest.raises(DataError, match=r"needs 5 retain entities .*1 to forget, 2 to hold out and 2 to keep; found 4 of 4"):
        world("validation", n_retain=4).serve()
    small = world("validation", n_retain=6).serve()
    assert [len(entities(small, "streams", name)) for name in ("forget", "retain")] == [2, LEAST]
    with pytest.raises(DataError, match=r"needs 4 unknown names, 2 of them to hold out; found 3"):
        world("validation", n_unknown=3).serve()


@pytest.mark.parametrize("name", sorted(FAKES))
def test_sources_of_rows(name: str, tmp_path: Path) -> None:
    source = made(name, tmp_path / name, partition="validation")
    test = source.load()
    if name in TOO_SMALL:
        with pytest.raises(DataError, match=r"data\.partition=validation needs (\d+ retain )?entities .*; found"):
            source.serve()
        return
    tuning = source.serve()
    check_streams(tuning)
    assert_nothing_of_the_test(test, tuning)
    assert source.serve() == tuning


def test_sources_without_templates_hold_out_questions() -> None:
    people = ["Ann Lee", "Bob Ray", "Cy Fox", "Di Orr", "Ed Poe", "Flo Hay"]
    rows = [
        Row(row_id=10 * i + k, entity=name, prompt=f"Question {k} about {name}?", answer="x", mentions=(name,))
        for i, name in enumerate(people)
        for k in range(5)
    ]
    strangers = [
        Row(row_id=1000 + i, entity=f"No Body{i}", prompt=f"Who is No Body{i}?", answer="?", mentions=(f"No Body{i}",)) for i in range(8)
    ]
    target = replace(rows[0], row_id=999, entity="Gus Ash", prompt="Who is Gus Ash?", mentions=("Gus Ash",))
    data = EntityData(
        streams={"forget": (target,), "retain": tuple(rows), "known": tuple(rows), "unknown": tuple(strangers)},
        evaluation={},
        latent={},
        generic=("a text",),
        refusals=("?",),
        fingerprint="",
    )
    tuning = validation(data, seed=0)
    (forgotten,) = entities(tuning, "streams", "forget")
    assert forgotten in people
    assert [row.prompt for row in tuning.evaluation["forget_paraphrased"]] == [f"Question 4 about {forgotten}?"]
    assert tuning.latent["forget"] == tuning.evaluation["forget_paraphrased"]
    assert len(tuning.streams["forget"]) == 4
    assert tuning.generic == ("a text",)
    assert tuning.notes["generic"] == "the test's"
