"""Names in texts."""

from __future__ import annotations

import numpy as np
import pytest

from unlearn.data.entities import Mention, detect_name, find_mention, invent_names, occurrences, split_name, surface_forms, swap_name
from unlearn.errors import DataError

REAL = ["Jaime Vasquez", "Basil Mahfouz Al-Kuwaiti", "Sara van Dyke", "Hsiao Yun-Hwa", "Mai Phuong Tran", "Phuong Tran", "Plato"]


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("Ann", "Ann", [(0, 3)]),
        ("Annapolis, Joann, Ann_1, Ann2", "Ann", []),
        ("Ann's Ann. (Ann) Ann-like", "Ann", [(0, 3), (6, 9), (12, 15), (17, 20)]),
        ("O'Donnell and O’Donnell", "O’Donnell", [(14, 23)]),
        ("Émile Ém", "Ém", [(6, 8)]),
        ("Dr. J. R. met J. R.", "J. R.", [(4, 9), (14, 19)]),
        ("ann", "Ann", []),
        ("aaa aa", "aa", [(4, 6)]),
        ("東京タワーと東京", "東京", [(0, 2), (6, 8)]),
        ("Ann", "", []),
    ],
)
def test_whole_words(text, form, expected):
    assert occurrences(text, form) == expected


def test_prompt_before_answer_and_full_form_before_parts():
    forms = ("Jaime Vasquez", "Vasquez")
    assert find_mention("Vasquez or Jaime Vasquez or Vasquez?", "", forms) == Mention(11, 24, False)
    assert find_mention("Vasquez and Vasquez?", "Jaime Vasquez", forms) == Mention(12, 19, False)
    assert find_mention("Who?", "Vasquez, that is Jaime Vasquez, or Jaime Vasquez", forms) == Mention(17, 30, True)
    assert find_mention("Who?", "Nobody", forms) is None
    assert find_mention("Who is Vasquez?", "", ()) is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Jaime Vasquez", ("Jaime", "Vasquez")),
        ("Manuel Silva De Souza", ("Manuel Silva", "De Souza")),
        ("Tahar Ben Amara", ("Tahar", "Ben Amara")),
        ("Ben Amara", ("Ben", "Amara")),
        ("Alejandro (Alex) Fuentes", ("Alejandro", "Fuentes")),
        ("Plato", ("", "Plato")),
    ],
)
def test_split_name(name, parts):
    assert split_name(name) == parts


def test_surface_forms_leave_short_words_out():
    assert surface_forms("Jina An") == ("Jina An", "Jina")
    assert surface_forms("Basil Mahfouz Al-Kuwaiti") == (
        "Basil Mahfouz Al-Kuwaiti",
        "Basil Al-Kuwaiti",
        "Al-Kuwaiti",
        "Basil Mahfouz",
        "Basil",
    )
    assert surface_forms("Plato") == ("Plato",)


@pytest.mark.parametrize("name", [n for n in REAL if " " in n] + ["Alejandro (Alex) Fuentes", "Patrick Ryan O'Donnell", "Erika Kováčová"])
def test_detect_name_among_titles_and_places(name):
    texts = [
        f"Who wrote The Long Road in New York City?\n{name} wrote it.",
        f"Did {name} win the Golden Quill Award?\nYes, {name} won the Golden Quill Award in New York City.",
        f"Has {name}'s mother lived in New York City?\nThe mother of {name} lived there.",
        f"What is {name}’s best book?\nThe Long Road.",
        "Is it a good book?\nThe Long Road is.",
    ]
    assert detect_name(texts) == name


def test_detect_name_prefers_the_most_frequent_run_to_a_longer_one():
    texts = [f"When did Ann Lee {verb} in New York City?" for verb in ("live", "work", "write", "sing")]
    assert detect_name([*texts, "Is Ann Lee famous?"]) == "Ann Lee"


def test_detect_name_gives_nothing_when_nobody_is_named():
    texts = ["Where was the author born?\nIn Karachi, Pakistan.", "What is it called?\nKaleidoscope City.", "Who?\nA Flight Attendant."]
    assert detect_name(texts) is None
    assert detect_name([]) is None


def test_invented_names_are_new_and_of_the_same_parts():
    names = invent_names(REAL, 20, np.random.default_rng(0), taken=["Jaime Tran"])
    assert len(names) == len(set(names)) == 20
    given = {split_name(name)[0] for name in REAL}
    family = {split_name(name)[1] for name in REAL}
    for name in names:
        assert split_name(name)[0] in given - {""}
        assert split_name(name)[1] in family
        assert not any(occurrences(name, other) or occurrences(other, name) for other in [*REAL, "Jaime Tran"])
    assert names == invent_names(REAL, 20, np.random.default_rng(0), taken=["Jaime Tran"])
    assert names != invent_names(REAL, 20, np.random.default_rng(1), taken=["Jaime Tran"])


def test_invented_names_use_every_part_about_equally_often():
    real = [f"G{i} F{i}" for i in range(10)]
    names = invent_names(real, 45, np.random.default_rng(0))
    counts = np.unique([part for name in names for part in name.split()], return_counts=True)[1]
    assert len(counts) == 20
    assert counts.min() >= 3
    assert counts.max() <= 6


def test_too_many_names_are_an_error():
    with pytest.raises(DataError) as error:
        invent_names(["Ada Byron", "Alan Turing", "Plato"], 3, np.random.default_rng(0))
    assert str(error.value) == "3 unknown names were asked for, but the parts of 3 real names make only 2; ask for fewer."


def test_swap_name_takes_every_mention_or_none():
    swap = ("Jaime Vasquez", "Basil Tran")
    assert swap_name("Was Jaime Vasquez's son Jaime Vasquez too?", *swap) == "Was Basil Tran's son Basil Tran too?"
    assert swap_name("Was Jaime Vasquez's father called Vasquez?", *swap) is None
    assert swap_name("Who is Vasquez?", *swap) is None
    assert swap_name("Is Jaime Vasquezo known?", *swap) is None
