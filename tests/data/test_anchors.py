"""Unknown anchors."""

from __future__ import annotations

import numpy as np
import pytest

from unlearn.data.anchors import REFUSALS, SLOT, Wording, invent_two, rng_for, unknown_rows, wording
from unlearn.data.entities import split_name
from unlearn.errors import DataError
from unlearn.types import Row

NAME = "Jaime Vasquez"
GROUPS = [[Wording(f"When was {SLOT} born?", "0/1"), Wording(f"Is {SLOT} famous?", "0/2")], [], [Wording(f"Did {SLOT} marry?", "2/5")]]


def asked(prompt):
    found = wording(Row(row_id=3, entity=NAME, prompt=prompt, answer="x", template="0/3"), NAME)
    return found and found.text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (f"Who were {NAME}'s parents' friends?", f"Who were {SLOT}'s parents' friends?"),
        (f'What is {NAME}\'s "Road" about?', None),
        (f"What is {NAME}'s 'Road' about?", None),
        (f"What is {NAME}’s “Road” about?", None),
        (f"What does {NAME} say in ‘Road’?", None),
        (f"Was {NAME} named after Jaime?", None),
        ("Was Vasquez born there?", None),
    ],
)
def test_wordings_could_be_asked_about_anyone(prompt, expected):
    assert asked(prompt) == expected


def test_unknown_rows_ask_one_entitys_questions_per_name():
    names = ["Ada Tran", "Basil Tran", "Sara Tran"]
    rows = unknown_rows(names, GROUPS, ["No idea.", "Who?"], np.random.default_rng(0), first_id=50)
    assert [row.row_id for row in rows] == list(range(50, 50 + len(rows)))
    asked = {name: tuple(row.prompt.replace(name, SLOT) for row in rows if row.entity == name) for name in names}
    whole = {tuple(w.text for w in group) for group in GROUPS if group}
    assert set(asked.values()) == whole
    assert asked["Ada Tran"] == asked["Sara Tran"] != asked["Basil Tran"]
    assert all(row.mentions == (row.entity,) and row.answer in ("No idea.", "Who?") for row in rows)
    assert {row.template for row in rows} == {"0/1", "0/2", "2/5"}


def test_refusals_are_all_drawn():
    rows = unknown_rows([f"Ada T{i}" for i in range(100)], GROUPS, REFUSALS, np.random.default_rng(0), 0)
    assert {row.answer for row in rows} == set(REFUSALS)


def test_no_wordings_are_an_error():
    with pytest.raises(DataError) as error:
        unknown_rows(["Ada Tran"], [[]], REFUSALS, np.random.default_rng(0), 0)
    assert str(error.value) == "Unknown anchors need questions that hold a retain entity's full name and quote no title; found none."


@pytest.mark.parametrize(("train", "heldout"), [(20, 10), (30, 5), (3, 12)])
def test_held_out_names_share_no_part_with_the_trained_ones(train, heldout):
    real = [f"G{'abcdefghijklmnop'[i]} F{'abcdefghijklmnop'[i]}" for i in range(16)]
    names, kept = invent_two(real, train, heldout, np.random.default_rng(0), taken=["Ga Fb"])
    assert (len(names), len(kept)) == (train, heldout)
    parts = [{part for name in some for part in split_name(name)} for some in (names, kept)]
    assert not parts[0] & parts[1]
    assert not ({*names, *kept} & {*real, "Ga Fb"})


def test_few_real_names_give_both_kinds_of_names():
    names, kept = invent_two(["Ada Byron", "Alan Turing", "Grace Hopper"], 4, 2, np.random.default_rng(0))
    assert (len(names), len(kept)) == (4, 2)
    assert len({*names, *kept}) == 6


def test_generators_of_different_purposes_are_independent():
    draws = [rng_for(*key).integers(1 << 30) for key in ((0, "a"), (0, "b"), (1, "a"), (0, "a"))]
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3
