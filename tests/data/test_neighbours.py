from __future__ import annotations

import doctest

import pytest

from unlearn.data import neighbours
from unlearn.data.neighbours import neighbour_rows
from unlearn.errors import DataError
from unlearn.types import Row


def row(i: int, name: str, prompt: str = "Where was {} born?") -> Row:
    return Row(row_id=i, entity=name, prompt=prompt.format(name), answer="Oslo", mentions=(name,) if name else ())


def test_doctests() -> None:
    assert doctest.testmod(neighbours).failed == 0


def test_the_weights_of_a_row_s_neighbours_sum_to_one_and_every_name_is_new() -> None:
    rows = [row(0, "Ada Byron"), row(1, "Ada Byron", "What does {} do?"), row(2, "Plato"), row(3, "")]
    known = {"Ada Byron", "Plato", "Ada Turing"}  # rules out Alan Turing, whose family name would make a known one
    made = neighbour_rows(rows, ["Alan Turing", "Emmy Noether", "Max Born", "Lise Meitner"], known, 2, seed=0)
    names = {i: [(r.entity, w) for r, w in zip(made.rows, made.weights, strict=True) if r.row_id == i] for i in range(4)}
    assert names[0] == names[1]
    assert not names[3]
    assert [sum(w for _, w in names[i]) for i in (0, 2)] == pytest.approx([1.0, 1.0])
    assert [w for _, w in names[0]] == [0.5, 0.5, -0.5] * 2
    first, second, both = (name.split() for name, _ in names[0][:3])
    assert (first[1], second[0]) == ("Byron", "Ada")
    assert both == [first[0], second[1]]
    assert not known & {name for found in names.values() for name, _ in found}
    assert len({name for name, _ in names[0]}) == 6
    assert all(r.prompt.replace(r.entity, "{}") in ("Where was {} born?", "What does {} do?") for r in made.rows)


def test_a_name_of_one_part_has_strangers_of_equal_weight() -> None:
    made = neighbour_rows([row(0, "Plato")], ["Emmy Noether", "Zeno", "Max Born"], {"Plato"}, 3, seed=1)
    assert sorted(r.entity for r in made.rows) == ["Emmy Noether", "Max Born", "Zeno"]
    assert made.weights == pytest.approx([1 / 3] * 3)


def test_too_few_strangers_and_no_name_to_replace_are_errors() -> None:
    with pytest.raises(DataError, match=r"need 2 unknown names for 'Ada Byron' that make no known one; found 1"):
        neighbour_rows([row(0, "Ada Byron")], ["Alan Turing"], {"Ada Byron"}, 2, seed=0)
    leftover = Row(row_id=0, entity="Ada Byron", prompt="Was Ada's friend Ada Byron?", answer="x", mentions=("Ada Byron",))
    with pytest.raises(DataError, match="full name of their entity"):
        neighbour_rows([leftover], ["Alan Turing"], {"Ada Byron"}, 1, seed=0)
