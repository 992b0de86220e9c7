"""Typed questions find their entity, and examples cover every group."""

from __future__ import annotations

import pytest

from tests.toys import PEOPLE, toy_data
from unlearn.data.asking import FORGOTTEN, KEPT, NOBODY, Names, Question, examples

DATA = toy_data()
NAMES = Names.of(DATA)


@pytest.mark.parametrize(("group", "told"), [("forget", FORGOTTEN), ("retain", KEPT), ("retain_unseen", KEPT), ("unknown_heldout", NOBODY)])
def test_names_of_the_data_are_found_with_their_group_and_answer(group: str, told: str) -> None:
    row = next(row for rows in DATA.evaluation.values() for row in rows if row.entity == PEOPLE[group][0])
    assert NAMES.read(row.prompt) == Question(row.prompt, row.entity, told, row.answer)


def test_spelling_is_that_of_the_data() -> None:
    assert NAMES.read("  where was   ann LEE born?") == Question("where was Ann Lee born?", "Ann Lee", FORGOTTEN, "")


def test_brackets_win_over_the_data_and_are_not_asked() -> None:
    assert NAMES.read("Did Ann Lee meet [Zork Blue]?") == Question("Did Ann Lee meet Zork Blue?", "Zork Blue", "", "")
    assert NAMES.read("Where was [Bob Moss] born?").group == FORGOTTEN


def test_parts_of_words_are_no_names() -> None:
    assert NAMES.read("Who is Joann Leeds?").name == ""


def test_the_longest_name_counts() -> None:
    names = Names({"Lee": KEPT, "Ann Lee": FORGOTTEN})
    assert names.read("Who is Ann Lee?").name == "Ann Lee"
    assert names.read("Who is Lee?").group == KEPT


def test_examples_are_of_every_group_and_change() -> None:
    first, second = examples(DATA), examples(DATA, 1)
    assert [q.group for q in first] == [FORGOTTEN, FORGOTTEN, KEPT, NOBODY]
    assert len({q.name for q in first}) == 4
    assert {q.text for q in first} != {q.text for q in second}
    for question in first + second:
        assert question.name in question.text
        assert NAMES.read(question.text) == question
