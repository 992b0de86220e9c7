"""Right values of attributes."""

from __future__ import annotations

import pytest

from unlearn.errors import DataError
from unlearn.functional.attributes import RULES, gives, numbers, token_set_ratio


@pytest.mark.parametrize(
    ("rule", "text", "answers", "right"),
    [
        ("name", "He was born in Bartow, Florida.", ["Bartow"], True),
        ("name", "Bartov", ["Bartow"], False),
        ("name", "Vitoria-Gasteis", ["Vitoria-Gasteiz"], True),
        ("name", "Orlando", ["New York Knicks", "Orlando Magic"], True),
        ("name", "the USA", ["United States"], True),
        ("name", "China", ["People's Republic of China"], True),
        ("name", "", ["Riga"], False),
        ("name", "\n", ["Riga"], False),
        ("name", "Unknown.\nRiga", ["Riga"], False),
        ("part", "a romantic drama film", ["drama"], True),
        ("part", "comedy", ["drama"], False),
        ("birth_year", "around 1984", ["1979"], True),
        ("birth_year", "1985", ["1979"], False),
        ("year", "in 2001", ["1999"], True),
        ("year", "in 2002", ["1999"], False),
        ("minutes", "98 minutes", ["95"], True),
        ("minutes", "an hour", ["95"], False),
        ("metres", "121", ["101"], True),
        ("metres", "122", ["101"], False),
        ("population", "about 340,000", ["325069"], True),
        ("population", "400,000", ["325069"], False),
        ("coordinates", "100.5° W, 20.2° N", ["-100.39, 20.59"], True),
        ("coordinates", "20.2° N, 100.5° W", ["-100.39, 20.59"], True),
        ("coordinates", "20.2° N", ["-100.39, 20.59"], False),
        ("coordinates", "98.0, 20.2", ["-100.39, 20.59"], False),
    ],
)
def test_rules(rule: str, text: str, answers: list[str], right: bool) -> None:
    assert gives(text, answers, rule) is right


def test_likeness_is_of_sets_of_words() -> None:
    assert token_set_ratio("new york knicks", "Knicks, New York") == 100
    assert token_set_ratio("new york", "new york knicks") == 100
    assert token_set_ratio("", "x") == 0
    assert token_set_ratio("alpha beta", "gamma delta") < 60


def test_numbers_with_groups_signs_and_fractions() -> None:
    assert numbers("12 500, 3.5 and -7; 1987") == [12500, 3.5, -7, 1987]
    assert numbers("none") == []


def test_every_rule_refuses_an_empty_text() -> None:
    assert not [rule for rule in RULES if gives("", ["1"], rule)]


def test_unknown_rules_are_named() -> None:
    with pytest.raises(DataError, match="^rule must be one of name, part, .*; found 'guess'.$"):
        gives("x", ["x"], "guess")
