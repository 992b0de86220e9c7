from __future__ import annotations

import re

import pytest

from tests.tiny import tiny_tokenizer
from unlearn.data.reader import Reader
from unlearn.data.spans import answer_masks, batch_mask
from unlearn.functional.tokens import answer_targets
from unlearn.types import PromptFormat, Row

ROWS = (
    Row(row_id=1, entity="", prompt="Where was Ann Lee born?", answer="In Paris or London"),
    Row(row_id=2, entity="", prompt="Ann Lee was born in", answer="Paris", kind="statement"),
    Row(row_id=3, entity="", prompt="", answer="The author was born in Paris.", kind="text"),
    Row(row_id=4, entity="", prompt="Who?", answer="nobody"),
)


def reader(bos: bool = True, **fmt: object) -> Reader:
    return Reader(
        tokenizer=tiny_tokenizer(add_bos=bos),
        prompt_format=PromptFormat(**fmt),  # type: ignore[arg-type]
        refusals=(),
        max_length=64,
        batch_size=8,
        max_new_tokens=4,
    )


def marked(r: Reader, patterns: tuple[str, ...]) -> dict[int, str]:
    """What the marked tokens of each row say."""
    masks = answer_masks(ROWS, r, [re.compile(p) for p in patterns])
    return {
        row.row_id: r.tokenizer.decode(
            [i for i, own in zip(made.ids[max(made.answer_start, 1) :], masks[row.row_id], strict=True) if own]
        ).strip()
        for row, made in zip(ROWS, r.tokens(ROWS), strict=True)
    }


@pytest.mark.parametrize("bos", [True, False])
def test_without_patterns_the_whole_answer_and_nothing_after_it(bos: bool) -> None:
    said = marked(reader(bos, end=" <end>"), ())
    assert {i: said[i] for i in (1, 2, 4)} == {1: "In Paris or London", 2: "Paris", 4: "nobody"}
    assert ROWS[2].answer.endswith(said[3])


@pytest.mark.parametrize("bos", [True, False])
def test_patterns_mark_the_tokens_of_what_they_find(bos: bool) -> None:
    said = marked(reader(bos), ("Paris", "Lon"))
    assert said[2] == "Paris"
    assert "Paris" in said[1]
    assert "or" not in said[1].split()
    assert "In" not in said[1].split()
    assert "author" not in said[3]
    assert "Paris" in said[3]
    assert said[4] == ""


def test_an_empty_match_marks_nothing() -> None:
    assert set(marked(reader(), ("x*",)).values()) == {""}


def test_the_mask_of_a_batch_follows_its_answer_tokens() -> None:
    r = reader()
    masks = answer_masks(ROWS, r, [re.compile("Paris")])
    batch = r.batches(ROWS)[0]
    mask_A = batch_mask(masks, batch)
    targets_A = answer_targets(batch.labels_BT)
    assert mask_A.shape == targets_A.shape
    assert r.tokenizer.decode(targets_A[mask_A]).split() == ["Paris"] * 3
    assert not batch_mask({}, batch).any()


def test_no_rows() -> None:
    assert answer_masks((), reader()) == {}
