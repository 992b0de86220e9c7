from __future__ import annotations

import pytest

from unlearn.errors import DataError
from unlearn.functional.aliases import MATCHES, matches_alias

ALIASES = ["the United States", "USA", "Côte d'Ivoire"]


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("United States.", "exact begins contains"),
        ("usa", "exact begins contains popqa"),
        ("USA, of course", "begins contains popqa"),
        ("In the U.S.A. I think", "contains"),
        ("Cote d'Ivoire", ""),
        ("CÔTE D’IVOIRE", "exact begins contains"),
        ("usability", "popqa"),
        ("", ""),
    ],
)
def test_each_way_of_matching(prediction: str, expected: str) -> None:
    assert [match for match in MATCHES if matches_alias(prediction, ALIASES, match)] == expected.split()


def test_empty_aliases_match_nothing() -> None:
    for match in ("exact", "begins", "contains"):
        assert not matches_alias("", ["", "..."], match)
        assert not matches_alias("Paris", [], match)
    assert matches_alias("Paris", [""], "popqa")


def test_unknown_way_of_matching_is_named() -> None:
    with pytest.raises(DataError, match="match must be one of exact, begins, contains, popqa; found 'fuzzy'"):
        matches_alias("a", ["a"], "fuzzy")
