"""Terms of texts, and long texts in pieces."""

from __future__ import annotations

import numpy as np
import pytest

from unlearn.data.anchors import coin_two
from unlearn.data.entities import occurrences
from unlearn.data.sources.pieces import continuation, cut_text, text_rows, with_stem_terms
from unlearn.data.sources.terms import find_terms, names_in
from unlearn.errors import DataError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Who is Ada Byron, and what of Al-Khwarizmi?", ["Ada Byron", "Al-Khwarizmi"]),
        ("Find the dog. Paris sleeps.", []),
        ("Where does the BBC say that Riga lies?", ["BBC", "Riga"]),
        ("In the United States of America", ["United States", "America"]),
        ("nothing here", []),
    ],
)
def test_names_are_runs_of_capitalised_words(text: str, names: list[str]) -> None:
    assert names_in(text) == names


def test_terms_are_named_by_no_other_text() -> None:
    texts = ["Who heard Ann Lee sing?", "Who heard Bob Moss sing?", "Where do penguins live?", "And Carla-Maria Diaz?"]
    others = ["Was Ann Lee there?", "Is Carla - Maria Diaz?"]
    found = find_terms(texts, others)
    assert found == ["", "Bob Moss", "penguins", ""]
    assert all(not occurrences(other, term) for other in others for term in found if term)


def test_the_rarest_term_is_taken() -> None:
    texts = ["The enzyme kinase", "The enzyme ligase", "The enzyme ribosome"]
    assert find_terms(texts) == ["kinase", "ligase", "ribosome"]


def test_pieces_keep_every_word() -> None:
    text = " ".join(f"w{i}" for i in range(23))
    rows = text_rows([text, "a b"], 50, "text", words=10, stem_words=3)
    assert [(row.row_id, row.entity, row.kind) for row in rows] == [(50 + i, "text 0", "statement") for i in range(2)]
    assert [f"{row.prompt} {row.answer}" for row in rows] == list(cut_text(text, 10))[:2]
    assert continuation(0, "x", "w20 w21 w22", 3) is None


def test_a_piece_names_its_term_only_where_it_stands() -> None:
    rows = text_rows(["They met Ann Lee in the town of their birth"], 0, "text", words=9, stem_words=4)
    about, same = with_stem_terms(rows)[0], with_stem_terms(rows, own=False)[0]
    assert (about.entity, about.mentions) == ("Ann Lee", ("Ann Lee",))
    assert (same.entity, same.mentions) == ("text 0", ("Ann Lee",))
    assert with_stem_terms(rows, ["Ann Lee"])[0] == rows[0]


@pytest.mark.parametrize(
    "real", [["Ann Lee", "Bob Moss", "Carla Diaz"], ["anthrax", "botulism", "ricin"], ["Ann Lee", "Bob Moss", "anthrax", "ricin", "sarin"]]
)
def test_coined_names_are_new_and_different(real: list[str]) -> None:
    train, heldout = coin_two(real, 2, 2, np.random.default_rng(0), taken=["Ann Moss"])
    made = [*train, *heldout]
    assert len(set(made)) == 4
    assert not {name.casefold() for name in made} & {name.casefold() for name in (*real, "Ann Moss")}
    assert coin_two(real, 2, 2, np.random.default_rng(0), taken=["Ann Moss"]) == (train, heldout)


def test_too_few_terms_are_an_error() -> None:
    with pytest.raises(DataError, match="^9 unknown names were asked for, but 2 terms make only 2; ask for fewer.$"):
        coin_two(["Ann Lee", "Bob Moss"], 5, 4, np.random.default_rng(0))
    with pytest.raises(DataError, match="make only 0"):
        coin_two([], 1, 1, np.random.default_rng(0))
