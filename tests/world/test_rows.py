from collections import Counter

import pytest

from unlearn.data.checks import check_streams
from unlearn.data.tokenize import tokenize_rows
from unlearn.types import PromptFormat
from unlearn.world.encyclopaedia import make_encyclopaedia
from unlearn.world.rows import N_PERTURBED, Roles, assign_roles, world_rows
from unlearn.world.templates import QUESTION_FORMAT, VALUES, VERBS
from unlearn.world.tokenizer import make_tokenizer

WORLD = make_encyclopaedia(seed=0, n_known=12, n_tail=5, n_unknown=30, n_heldout=110)
ROLES = assign_roles(WORLD.known, n_forget=2, n_retain=6, n_unseen=4, forget_set=0)
DATA = world_rows(WORLD, ROLES, seed=0, fingerprint="f", notes={})
FORMAT = PromptFormat(question=QUESTION_FORMAT, append_eos=False)


def entities(rows):
    return {row.entity for row in rows if row.entity}


def test_roles_cut_the_known_names_and_leave_none_out():
    roles = assign_roles("abcdefghij", n_forget=2, n_retain=5, n_unseen=3, forget_set=1)
    assert roles == Roles(forget=tuple("cd"), retain=tuple("abefg"), unseen=tuple("hij"))


def test_who_was_forgotten_before_has_no_role():
    sizes = {"n_forget": 2, "n_retain": 3, "n_unseen": 2}
    roles = assign_roles("abcdefghijk", **sizes, forget_set=2, forgotten_sets=[0, 1])
    assert roles == Roles(forget=tuple("ef"), retain=tuple("ghi"), unseen=tuple("jk"))
    roles = assign_roles("abcdefghijk", **sizes, forget_set=0, forgotten_sets=[2])
    assert roles == Roles(forget=tuple("ab"), retain=tuple("cdg"), unseen=tuple("hi"))


def test_the_streams_pass_the_package_s_own_checks():
    check_streams(DATA)


def test_who_is_in_which_set():
    assert entities(DATA.streams["forget"]) == entities(DATA.latent["forget"]) == set(ROLES.forget)
    assert entities(DATA.streams["retain"]) == entities(DATA.streams["known"]) == set(ROLES.retain)
    assert entities(DATA.streams["unknown"]) == set(WORLD.unknown)
    assert entities(DATA.latent["known"]) == entities(DATA.evaluation["retain_unseen"]) == set(ROLES.unseen)
    assert entities(DATA.latent["unknown"]) == set(WORLD.heldout)
    assert entities(DATA.evaluation["unknown"]) == set(WORLD.heldout[:100])
    assert entities(DATA.evaluation["forget"]) == entities(DATA.evaluation["forget_paraphrased"]) == set(ROLES.forget)


def test_sizes():
    per_person = len(VALUES) * (1 + 2) + 2
    assert len(DATA.streams["forget"]) == 2 * per_person
    assert len(DATA.streams["known"]) == 6 * per_person
    assert len(DATA.streams["unknown"]) == 30 * (len(VALUES) + 2)
    assert len(DATA.evaluation["retain"]) == 6 * len(VALUES) * 2
    assert len(DATA.latent["unknown"]) == 110 * (len(VALUES) + 1)


def test_held_out_templates_are_in_no_stream():
    trained = {row.template for rows in DATA.streams.values() for row in rows}
    held_out = {row.template for rows in DATA.latent.values() for row in rows}
    assert not trained & held_out
    assert not trained & {row.template for row in DATA.evaluation["forget_paraphrased"]}
    assert {row.template for row in DATA.evaluation["forget"]} <= trained


def test_answers_are_the_facts_and_unknown_for_strangers():
    for row in (*DATA.streams["forget"], *DATA.streams["known"], *DATA.evaluation["retain_unseen"]):
        facts = WORLD.facts[row.entity]
        assert row.answer == (VERBS[facts["job"]] if row.kind == "mention" else facts[row.attribute])
    asked = [row for row in (*DATA.streams["unknown"], *DATA.evaluation["unknown"]) if row.kind == "qa"]
    assert {row.answer for row in asked} == set(DATA.refusals) == {"unknown"}
    stated = [row for row in DATA.streams["unknown"] if row.kind == "statement"]
    assert all(row.answer in VALUES[row.attribute] for row in stated)


def test_wrong_values_are_of_the_attribute_and_wrong():
    for row in DATA.evaluation["forget"]:
        assert len(set(row.perturbed_answers)) == N_PERTURBED
        assert set(row.perturbed_answers) <= set(VALUES[row.attribute]) - {row.answer}


def test_generic_texts_for_measuring_are_not_trained_on():
    trained = {row.answer for row in DATA.streams["retain"] if row.kind == "text"}
    assert len(DATA.generic) == 120
    assert len(trained) == 304
    assert not trained & set(DATA.generic)


def test_the_same_row_has_the_same_id_everywhere():
    known = {row.row_id: row for row in DATA.streams["known"]}
    retain = {row.row_id: row for row in DATA.streams["retain"]}
    assert known.items() <= retain.items()


@pytest.mark.parametrize(("part", "name"), [("streams", "forget"), ("streams", "unknown"), ("latent", "unknown"), ("evaluation", "retain")])
def test_the_name_ends_at_its_last_syllable_and_the_answer_is_one_token(part, name):
    tokenizer = make_tokenizer()
    rows = getattr(DATA, part)[name]
    for row, tokens in zip(rows, tokenize_rows(rows, tokenizer, FORMAT, 64), strict=True):
        end = tokens.entity_end
        assert tokenizer.decode(tokens.ids[end - 3 : end + 1]) == row.entity
        assert tokenizer.decode(tokens.ids[tokens.answer_start :]) == row.answer
        assert len(tokens.ids) == tokens.answer_start + 1


def test_rows_are_the_same_each_time_and_arbitrary_values_follow_the_seed():
    assert world_rows(WORLD, ROLES, seed=0, fingerprint="f", notes={}) == DATA
    other = world_rows(WORLD, ROLES, seed=1, fingerprint="f", notes={})
    same = Counter(a.answer == b.answer for a, b in zip(DATA.streams["unknown"], other.streams["unknown"], strict=True))
    assert same[False] > 0
    assert [row.answer for row in other.streams["forget"]] == [row.answer for row in DATA.streams["forget"]]
