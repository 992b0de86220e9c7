"""Names are found in every spelling and replaced by what only the salt can check."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from unlearn.functional.conceal import Concealer, keyed_hash

SALT = b"0123456789abcdef"


def concealer() -> Concealer:
    return Concealer({"Ada Byron": ("Ada Byron", "Byron"), "Plato": (), "Zoë O'Neil": ("O'Neil",)}, SALT)


def test_the_hash_is_hmac_sha256_of_the_name_without_case_and_spacing() -> None:
    expected = hmac.new(SALT, b"ada byron", hashlib.sha256).hexdigest()[:16]
    assert keyed_hash(" Ada   BYRON", SALT) == expected
    assert keyed_hash("Ada Byron", b"other") != expected


@pytest.mark.parametrize(
    "text",
    ["Ada Byron", "ADA BYRON", "ada_byron", "Ada-Byron.json", "https://x.org/Ada%20Byron", "Byron's", "plato", "Zoë O’Neil", "(O'Neil)"],
)
def test_every_spelling_is_replaced(text: str) -> None:
    made = concealer()
    hidden = made.text(text)
    assert made.holds(text)
    assert not made.holds(hidden)
    assert "entity-" in hidden


@pytest.mark.parametrize("text", ["Adam Byrone", "byron mode", "platonic", "Ada and Byronic", "Neil"])
def test_other_words_stay(text: str) -> None:
    assert concealer().text(text) == text
    assert not concealer().holds(text)


def test_nested_values_keep_their_shape() -> None:
    made = concealer()
    token = f"entity-{made.hashes['Plato']}"
    assert made.value({"Plato": ["who is Plato?", 3, None], "n": {"x": 1.5}}) == {token: [f"who is {token}?", 3, None], "n": {"x": 1.5}}


def test_a_vocabulary_may_hold_single_words_but_no_whole_name() -> None:
    made = concealer()
    assert not made.holds_name('["Byron", "Plato"]')
    assert made.holds_name('["Ada Byron"]')


def test_the_hashes_are_one_for_each_name() -> None:
    assert sorted(concealer().hashes) == ["Ada Byron", "Plato", "Zoë O'Neil"]
    assert len(set(concealer().hashes.values())) == 3
