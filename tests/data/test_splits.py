from __future__ import annotations

import pytest

from unlearn.data.splits import fact_keys, fact_splits
from unlearn.errors import DataError
from unlearn.types import Row


def facts(entity: str, n: int, first: int) -> list[Row]:
    return [Row(row_id=first + i, entity=entity, prompt=f"q{i}", answer=f"a{first + i}", attribute=f"k{i}") for i in range(n)]


def test_entities_with_other_facts_are_split_one_by_one() -> None:
    rows = facts("a", 5, 0) + facts("b", 3, 10) + facts("c", 1, 20)
    key = fact_keys(rows)
    found = list(fact_splits(rows, key, ["a", "b", "c"], 0.4, 3, seed=0))
    for keep in found:
        assert {name: len(taught) for name, taught in keep.items()} == {"a": 2, "b": 1}  # one fact cannot be split
        assert all(keep[name] < {key(row) for row in rows if row.entity == name} for name in keep)
    assert found == list(fact_splits(rows, key, ["a", "b", "c"], 0.4, 3, seed=0))


def test_one_fact_each_is_too_few() -> None:
    rows = facts("a", 1, 0) + facts("b", 1, 10)
    with pytest.raises(DataError, match="two facts or more about an entity"):
        next(fact_splits(rows, fact_keys(rows), ["a", "b"], 0.5, 1, seed=0))
