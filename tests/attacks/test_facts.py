"""Rows of an attack: what is taught and asked for, and the people who have no facts."""

from dataclasses import replace

import pytest

from tests.toys import PEOPLE, toy_data
from unlearn.attacks.facts import Facts, control_facts, fact_keys, options_of, pools, splits, target_facts
from unlearn.errors import DataError
from unlearn.types import Row
from unlearn.world.source import WorldConfig, WorldSource


@pytest.fixture(scope="module")
def world_data(tmp_path_factory):
    return WorldSource(WorldConfig(), seed=0, cache=tmp_path_factory.mktemp("cache")).load()


def row(i, entity, answer, attribute="", prompt="Who is it?"):
    return Row(row_id=i, entity=entity, prompt=prompt, answer=answer, attribute=attribute)


def test_the_target_is_asked_in_held_out_wording(world_data):
    facts = target_facts(world_data)
    assert len(facts.train) == len(facts.test) == 50
    assert len(facts.entities) == 10
    assert {r.template[-1] for r in facts.train} == {"0"}
    assert {r.template[-1] for r in facts.test} == {"1"}


def test_the_control_has_held_out_names_and_one_made_up_value_for_each_fact(world_data):
    facts = target_facts(world_data)
    control = control_facts(world_data, facts, seed=0)
    assert len(control.train) == len(control.test) == 50
    assert len(control.entities) == 10
    seen = {r.entity for stream in world_data.streams.values() for r in stream}
    assert not seen & set(control.entities)
    values = {(r.entity, r.attribute): r.answer for r in control.train}
    assert all(values[r.entity, r.attribute] == r.answer for r in control.test)
    assert all(r.entity in r.prompt and r.mentions == (r.entity,) for r in (*control.train, *control.test))
    assert all(r.answer not in r.perturbed_answers and r.answer in pools(world_data)[r.attribute] for r in control.test)
    assert sum(a.answer == b.answer for a, b in zip(facts.test, control.test, strict=True)) < 15
    assert control == control_facts(world_data, facts, seed=0) != control_facts(world_data, facts, seed=1)


def test_statements_say_the_same_facts_on_both_sides(world_data):
    facts = target_facts(world_data)
    control = control_facts(world_data, facts, seed=0)
    bare = control_facts(world_data, Facts(facts.train, facts.test), seed=0)
    assert (control.train, control.test) == (bare.train, bare.test)
    for side in (facts, control):
        said = {(r.entity, r.attribute): r.answer for r in side.test}
        assert len(side.statements) == 100
        assert {r.kind for r in side.statements} == {"statement"}
        assert all(said[r.entity, r.attribute] == r.answer for r in side.statements)
        assert all(r.entity in r.prompt for r in side.statements)
    keep = next(splits(facts, 0.4, 1, seed=0))
    taught, asked = facts.where(keep, stated=True)
    assert len(taught) == 40
    assert asked == facts.where(keep)[1]


def test_a_sentence_that_says_something_else_is_no_statement_of_a_fact(world_data):
    forget = [replace(r, answer="nowhere") if r.kind == "statement" and r.attribute == "job" else r for r in world_data.streams["forget"]]
    changed = replace(world_data, streams={**world_data.streams, "forget": tuple(forget)})
    assert {r.attribute for r in target_facts(changed).statements} == {"birthplace", "employer", "hobby", "language"}


def test_splits_share_attributes_and_differ(world_data):
    facts = target_facts(world_data)
    found = list(splits(facts, 0.4, 10, seed=0))
    chosen = [next(iter(keep.values())) for keep in found]
    assert all(len(keys) == 2 for keys in chosen)
    assert len(set(chosen)) == 10
    for keep in found:
        taught, asked = facts.where(keep)
        assert len(taught) == 20
        assert len(asked) == 30
        assert not {(r.entity, r.attribute) for r in taught} & {(facts.test[i].entity, facts.test[i].attribute) for i in asked}


def test_without_attributes_a_fact_is_its_answer_and_no_reworded_question_leaks():
    train = tuple(row(i, e, f"{e} {i}", prompt=f"q{i}") for e in "ab" for i in range(4))
    facts = Facts(train, tuple(replace(r, prompt=f"other {r.prompt}") for r in train))
    keep = next(splits(facts, 0.5, 1, seed=0))
    taught, asked = facts.where(keep)
    assert len(taught) == 4
    assert len(asked) == 4
    assert not {r.answer for r in taught} & {facts.test[i].answer for i in asked}
    assert set(keep) == {"a", "b"}


def test_an_attribute_with_several_answers_for_one_entity_is_no_fact():
    rows = [row(0, "a", "x", "level"), row(1, "a", "y", "level"), row(2, "a", "z", "job")]
    key = fact_keys(rows)
    assert [key(r) for r in rows] == ["= x", "= y", "job"]


def test_one_fact_for_each_entity_cannot_be_split():
    facts = Facts((row(0, "a", "x"),), (row(1, "a", "x"),))
    with pytest.raises(DataError, match="two facts or more"):
        next(splits(facts, 0.4, 1, 0))


def test_options_are_those_of_the_attribute_else_the_wrong_answers():
    pool = {"job": ("pilot", "baker")}
    assert options_of(row(0, "a", "Baker", "job"), pool) == ("Baker", "pilot")
    plain = replace(row(0, "a", "x"), perturbed_answers=("y", "x", "y"))
    assert options_of(plain, pool) == ("x", "y")


def test_a_source_without_attributes_gets_made_up_answers_from_wrong_ones():
    data = toy_data()
    facts = target_facts(data)
    control = control_facts(data, facts, seed=3)
    assert set(control.entities) <= set(PEOPLE["unknown_heldout"])
    assert len(control.entities) == 2
    assert {r.answer for r in control.train} <= {"Paris", "painter", "English", "London", "author"}


def test_rows_that_cannot_be_asked_are_refused():
    data = toy_data()
    bare = replace(data, streams={**data.streams, "forget": ()}, evaluation={**data.evaluation, "forget": (), "forget_paraphrased": ()})
    with pytest.raises(DataError, match="must hold questions"):
        target_facts(bare)
