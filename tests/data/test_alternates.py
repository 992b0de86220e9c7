from __future__ import annotations

import doctest
from collections import Counter

import pytest
import torch

from tests.tiny import tiny_tokenizer
from unlearn.data import alternates
from unlearn.data.alternates import Alternates, given, refusals, with_answer
from unlearn.data.reader import Reader
from unlearn.errors import DataError
from unlearn.types import PromptFormat, Row, TokenBatch

ROWS = (
    Row(row_id=7, entity="Ann Lee", prompt="Where was Ann Lee born?", answer="Paris", mentions=("Ann Lee",), perturbed_answers=("London",)),
    Row(row_id=3, entity="Ann Lee", prompt="Ann Lee was born in", answer="Paris", kind="statement", mentions=("Ann Lee",)),
    Row(row_id=5, entity="Bob Moss", prompt="Who is the author?", answer="Bob Moss", mentions=("Bob Moss",)),
)
REFUSALS = ("unknown", "I don't know.", "The answer is unknown.")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(
        tokenizer=tiny_tokenizer(), prompt_format=PromptFormat(), refusals=REFUSALS, max_length=64, batch_size=2, max_new_tokens=4
    )


@pytest.fixture(scope="module")
def made(reader: Reader) -> Alternates:
    return Alternates.of(ROWS, {7: REFUSALS, 5: REFUSALS}, reader)


def own(reader: Reader, rows: tuple[Row, ...] = ROWS) -> TokenBatch:
    wide = Reader(**{**{f: getattr(reader, f) for f in reader.__dataclass_fields__}, "batch_size": 99})
    return wide.batches(rows)[0]


def answer(reader: Reader, batch: TokenBatch, row: int) -> str:
    labels = batch.labels_BT[row]
    return reader.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True).strip()


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(alternates)
    assert result.attempted >= 3
    assert result.failed == 0


def test_only_questions_get_refusals_and_only_rows_that_have_them_get_given_answers() -> None:
    assert {i: sorted(texts) for i, texts in refusals(ROWS, REFUSALS).items()} == {7: sorted(REFUSALS), 5: sorted(REFUSALS)}
    assert given(ROWS) == {7: ("London",)}


def test_a_few_refusals_are_drawn_by_row_id() -> None:
    many = tuple(f"refusal {i}" for i in range(40))
    rows = [Row(row_id=i, entity="", prompt="Who?", answer="nobody") for i in range(30)]
    few = refusals(rows, many, most=5)
    assert few == {**refusals(rows[::-1], many, most=5)}
    assert all(len(set(texts)) == 5 and set(texts) <= set(many) for texts in few.values())
    assert len({text for texts in few.values() for text in texts}) > 30
    assert set(refusals(rows, many[:3], most=5)[0]) == set(many[:3])


def test_a_batch_holds_the_prompts_of_its_questions_with_other_answers(reader: Reader, made: Alternates) -> None:
    assert len(made) == 2
    batch = own(reader)
    other, index_N = made.batch(batch, draw=1)
    assert other is not None
    assert other.row_id_B.tolist() == batch.row_id_B[index_N].tolist()
    assert sorted(other.row_id_B.tolist()) == [5, 7]
    for place, source in enumerate(index_N.tolist()):
        start = int(other.answer_start_B[place])
        assert start == int(batch.answer_start_B[source])
        assert other.input_ids_BT[place, :start].tolist() == batch.input_ids_BT[source, :start].tolist()
        assert answer(reader, other, place) == REFUSALS[made.pick(int(other.row_id_B[place]), 1)]


def test_the_choice_depends_on_row_and_draw_only_and_every_variant_gets_its_turn(reader: Reader, made: Alternates) -> None:
    batch = own(reader)
    turned = TokenBatch(*(t.flip(0) for t in batch))
    for draw in range(4):
        (straight, _), (back, _) = made.batch(batch, draw), made.batch(turned, draw)
        assert straight is not None
        assert back is not None
        said = [{int(b.row_id_B[i]): answer(reader, b, i) for i in range(2)} for b in (straight, back)]
        assert said[0] == said[1]
    for stride in (1, 3):  # a row that returns every third step still sees all three
        turns = Counter(made.pick(7, draw * stride) for draw in range(300))
        assert set(turns) == {0, 1, 2}
        assert min(turns.values()) > 60
    assert [made.pick(7, d) for d in range(20)] != [made.pick(5, d) for d in range(20)]


def test_a_batch_without_any_question_gives_none(reader: Reader, made: Alternates) -> None:
    other, index_N = made.batch(own(reader, ROWS[1:2]))
    assert other is None
    assert index_N.shape == (0,)
    assert index_N.dtype == torch.long


def test_no_other_answer_at_all_is_an_error(reader: Reader) -> None:
    with pytest.raises(DataError, match="must have other answers"):
        Alternates.of(ROWS, {}, reader)


def test_a_name_that_stood_in_the_old_answer_alone_is_no_longer_looked_for(reader: Reader) -> None:
    assert with_answer(ROWS[2], "unknown").mentions == ()
    assert with_answer(ROWS[2], "It was Bob Moss.").mentions == ("Bob Moss",)
    assert with_answer(ROWS[0], "unknown").mentions == ("Ann Lee",)
    assert reader.tokens([with_answer(ROWS[2], "unknown")])[0].entity_end == -1


def test_measured_numbers_come_back_for_the_variant_that_was_drawn(reader: Reader, made: Alternates) -> None:
    sizes = []

    def length(batch: TokenBatch) -> torch.Tensor:
        sizes.append(len(batch.row_id_B))
        return batch.attention_mask_BT.sum(1)

    scores = made.measure(length, batch_size=4)
    assert sum(sizes) == 6
    assert max(sizes) == 4
    for draw in range(5):
        other, _ = made.batch(own(reader), draw)
        assert other is not None
        assert scores.of(other, draw).tolist() == other.attention_mask_BT.sum(1).tolist()
