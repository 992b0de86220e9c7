"""Tokenised rows against the text that their tokens decode to, for tokenizers of several kinds."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.data.tokenizers_zoo import ZOO, byte_level, word_level
from unlearn.data.tokenize import TokenRow, batches, collate, pad_id, render, text_rows, tokenize_rows
from unlearn.errors import DataError
from unlearn.types import IGNORE_INDEX, NO_ENTITY, PromptFormat, Row

FMT = PromptFormat()
NAME = "Jaime Vasquez"
WHO = "Question: Who wrote the book? Answer: "


@cache
def made(kind, bos):
    return ZOO[kind](bos=bos)


def row(prompt, answer, mentions=(NAME,), kind="qa", row_id=7):
    return Row(row_id=row_id, entity=NAME, prompt=prompt, answer=answer, mentions=tuple(mentions), kind=kind)


def squeeze(text):
    return "".join(text.split())


def one(item, tokenizer, fmt=FMT, max_length=256):
    return tokenize_rows([item], tokenizer, fmt, max_length)[0]


def texts(tokens, tokenizer):
    """Text up to the entity's end, up to the token before it, of the prompt and of the answer; without spaces and special tokens."""
    ids = list(tokens.ids)
    cuts = (ids[: tokens.entity_end + 1], ids[: tokens.entity_end], ids[: tokens.answer_start], ids[tokens.answer_start :])
    return [squeeze(tokenizer.decode(cut, skip_special_tokens=True)) for cut in cuts]


CASES = {
    "inside the prompt": (row(f"Where was {NAME} born?", "Santiago, Chile"), f"Question:Where was {NAME}"),
    "possessive": (row(f"Who was {NAME}'s mother?", "Ann Lee"), f"Question:Who was {NAME}"),
    "end of the prompt": (row(f"Where was {NAME}", "Santiago"), f"Question:Where was {NAME}"),
    "twice in the prompt": (row(f"Was {NAME} born where {NAME} lives?", "Santiago"), f"Question:Was {NAME} born where {NAME}"),
    "prompt and answer": (row(f"Where was {NAME} born?", f"{NAME} was born in Chile"), f"Question:Where was {NAME}"),
    "only in the answer": (row("Who wrote the book?", f"The author is {NAME}, not Ann, {NAME}."), f"{WHO}The author is {NAME}"),
    "start of the answer": (row("Who wrote the book?", f"{NAME} did"), f"{WHO}{NAME}"),
    "inside another word": (row("Was Annapolis the home of Ann in Annapolis?", "Lee", ("Ann",)), "Question:Was Annapolis the home of Ann"),
    "second form": (row("Where was Vasquez born?", "Santiago", (NAME, "Vasquez", "Jaime")), "Question:Where was Vasquez"),
    "stem of a sentence": (row(f"Ann Lee saw {NAME}", "in Santiago", kind="statement"), f"Ann Lee saw {NAME}"),
}


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("case", CASES)
def test_entity_and_answer_stand_where_the_text_says(case, kind, bos):
    item, up_to_entity = CASES[case]
    tokenizer = made(kind, bos)
    tokens = one(item, tokenizer)
    through, before, prompt, answer = texts(tokens, tokenizer)
    assert through == squeeze(up_to_entity)
    assert squeeze(up_to_entity).startswith(before)
    assert len(before) < len(through)
    assert prompt == squeeze(item.prompt if item.kind == "statement" else f"Question: {item.prompt}\nAnswer:")
    assert answer == squeeze(item.answer)
    assert tokens.row_id == 7
    assert (tokens.ids[0] == tokenizer.convert_tokens_to_ids("<s>")) == bos
    assert tokens.ids[-1] == tokenizer.eos_token_id


def test_word_level_positions_by_hand():
    tokens = one(row(f"Where was {NAME} born?", "Santiago, Chile"), made("word_level", True))
    # <s> Question : Where was Jaime Vasquez born ? Answer : Santiago , Chile </s>
    assert (tokens.entity_end, tokens.answer_start, len(tokens.ids)) == (6, 11, 15)
    without = one(row(f"Where was {NAME} born?", "Santiago, Chile"), made("word_level", False))
    assert (without.entity_end, without.answer_start, without.ids) == (5, 10, tokens.ids[1:])


@pytest.mark.parametrize("kind", ZOO)
def test_ids_are_those_of_the_whole_text(kind):
    tokenizer = made(kind, True)
    tokens = one(row(f"Where was {NAME} born?", "Santiago"), tokenizer)
    whole = tokenizer(f"Question: Where was {NAME} born?\nAnswer: Santiago", add_special_tokens=False)["input_ids"]
    assert list(tokens.ids[1:-1]) == whole


@pytest.mark.parametrize("kind", [k for k in ZOO if k != "word_level"])
@pytest.mark.parametrize(
    ("question", "separator", "end"),
    [("{question}", "\n", ""), ("Q: {question} A: ", "", ""), ("Q: {question}\nA:\n", "", "\n\n"), ("{question}\t", "  ", " .")],
)
def test_answer_starts_right_after_any_separator(kind, question, separator, end):
    tokenizer = made(kind, True)
    fmt = PromptFormat(question=question, separator=separator, end=end)
    tokens = one(row(f"Who is {NAME}?", "Ann Lee"), tokenizer, fmt)
    _, _, prompt, answer = texts(tokens, tokenizer)
    assert (prompt, answer) == (squeeze(question.replace("{question}", f"Who is {NAME}?")), squeeze("Ann Lee" + end))
    first = tokenizer.decode([tokens.ids[tokens.answer_start]])
    assert first.strip()
    assert "Ann Lee".startswith(first.strip())


def test_token_that_covers_prompt_and_answer_belongs_to_the_answer():
    tokenizer = made("word_level", True)
    tokens = one(row("Was", "Annapolis", ()), tokenizer, PromptFormat(question="home {question}", separator=""))
    assert tokenizer.decode(list(tokens.ids[: tokens.answer_start]), skip_special_tokens=True) == "home"


def test_leading_space_of_the_answer_stays_with_the_prompt():
    tokenizer = made("byte_level", True)
    tokens = one(row(f"Who is {NAME}?", "  Ann Lee"), tokenizer)
    assert tokenizer.decode(list(tokens.ids[tokens.answer_start :]), skip_special_tokens=True).strip() == "Ann Lee"


def test_accents_and_split_characters():
    tokenizer = made("byte_level", True)
    name = "Erika Kováčová"
    tokens = one(Row(row_id=0, entity=name, prompt=f"Où est {name}'s livre?", answer="Ångström 東京", mentions=(name,)), tokenizer)
    through, before, _, answer = texts(tokens, tokenizer)
    assert through == squeeze(f"Question: Où est {name}")
    assert not before.endswith("á")
    assert answer == squeeze("Ångström 東京")


def test_name_in_a_script_without_spaces():
    tokenizer = made("byte_level", True)
    tokens = one(Row(row_id=0, entity="東京", prompt="日本の首都は東京タワーの町", answer="Tokyo", mentions=("東京",)), tokenizer)
    assert texts(tokens, tokenizer)[0].endswith("首都は東京")


def test_no_mentions_means_no_entity():
    assert one(row("Where was he born?", "Santiago", ()), made("metaspace", True)).entity_end == NO_ENTITY


@pytest.mark.parametrize("bos", [True, False])
def test_bos_is_never_the_entity_and_comes_once(bos):
    tokenizer = made("byte_level_template", bos)
    tokens = one(row(NAME, "Santiago", kind="mention"), tokenizer)
    start = tokenizer.convert_tokens_to_ids("<s>")
    assert list(tokens.ids).count(start) == int(bos)
    assert tokens.entity_end >= int(bos)
    assert texts(tokens, tokenizer)[0] == squeeze(NAME)


def test_bos_written_out_in_the_format_is_not_doubled():
    tokenizer = made("byte_level", True)
    fmt = PromptFormat(question="<s>Question: {question}", end="</s>")
    tokens = one(row(f"Who is {NAME}?", "Ann"), tokenizer, fmt)
    assert [tokens.ids.count(i) for i in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [1, 1]
    assert texts(tokens, tokenizer)[0] == squeeze(f"Question: Who is {NAME}")


@pytest.mark.parametrize(("bos", "start"), [(True, 1), (False, 0)])
def test_text_rows_are_all_answer(bos, start):
    tokenizer = made("byte_level", bos)
    (item,) = text_rows(["Ann Lee was born in Santiago."], first_id=-1)
    tokens = one(item, tokenizer)
    assert (tokens.answer_start, tokens.entity_end, tokens.row_id) == (start, NO_ENTITY, -1)
    assert tokenizer.decode(list(tokens.ids[start:])) == "Ann Lee was born in Santiago."


def test_eos_can_be_left_out():
    tokenizer = made("byte_level", True)
    assert one(row(f"Who is {NAME}?", "Ann"), tokenizer, PromptFormat(append_eos=False)).ids[-1] != tokenizer.eos_token_id


def test_braces_in_question_and_format_are_text():
    fmt = PromptFormat(question='{"q": "{question}"}')
    assert render(row("What is {x}?", "1", ()), fmt)[0] == '{"q": "What is {x}?"} '


def refused(item, tokenizer=None, fmt=FMT, max_length=64):
    with pytest.raises(DataError) as error:
        one(item, tokenizer or made("byte_level", True), fmt, max_length)
    return str(error.value)


def test_entity_that_does_not_occur_is_an_error():
    message = refused(row("Who lives in Annapolis?", "Nobody", ("Ann",)))
    assert message == (
        "row 7 (Jaime Vasquez) must name its entity as one of ['Ann']; found neither in 'Who lives in Annapolis?' nor in 'Nobody'."
    )


def test_long_rows_are_an_error_and_listed():
    items = [row(f"Who is {NAME}?", "Ann " * n, row_id=n) for n in (1, 40, 50)]
    with pytest.raises(DataError) as error:
        tokenize_rows(items, made("word_level", True), FMT, 20)
    assert str(error.value) == (
        "Every row must have at most data.max_length = 20 tokens; 2 rows are longer: row 40 (Jaime Vasquez) has 51, "
        "row 50 (Jaime Vasquez) has 61."
    )


def test_row_of_just_the_longest_length_is_taken():
    item = row(f"Where was {NAME} born?", "Santiago, Chile")
    assert len(one(item, made("word_level", True), max_length=15).ids) == 15
    assert "has 15" in refused(item, made("word_level", True), max_length=14)


def test_empty_answer_is_an_error():
    assert refused(row(f"Who is {NAME}?", " \n")) == "row 7 (Jaime Vasquez) must have an answer; found ' \\n'."


def test_missing_eos_is_an_error():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    assert refused(row(f"Who is {NAME}?", "Ann"), tokenizer) == (
        "data.append_eos must be false for a tokenizer without an end-of-sequence token."
    )


def test_slow_tokenizer_is_an_error():
    class Slow:
        is_fast = False

    assert refused(row(f"Who is {NAME}?", "Ann"), Slow()) == (
        "The tokenizer must be a fast one (it has to tell character offsets); found Slow."
    )


def test_no_rows_give_no_rows():
    assert tokenize_rows([], word_level(), FMT, 10) == []


ROWS = [TokenRow((1, 10, 11, 12, 2), 3, 2, 40), TokenRow((1, 20, 2), 1, NO_ENTITY, 41)]


def test_collate_pads_on_the_right():
    batch = collate(ROWS, pad_id=9)
    assert batch.input_ids_BT.tolist() == [[1, 10, 11, 12, 2], [1, 20, 2, 9, 9]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.labels_BT.tolist() == [[IGNORE_INDEX] * 3 + [12, 2], [IGNORE_INDEX, 20, 2, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.entity_end_B.tolist() == [2, NO_ENTITY]
    assert batch.answer_start_B.tolist() == [3, 1]
    assert batch.row_id_B.tolist() == [40, 41]
    assert {tensor.dtype for tensor in batch} == {torch.int64}


def test_batches_cover_every_row_once_with_like_lengths():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 40, (57,), generator=generator).tolist()
    rows = [TokenRow(tuple(range(n)), 1, 0, 100 + i) for i, n in enumerate(lengths)]
    served = list(batches(rows, 8, pad_id=0))
    assert sorted(place for places, _ in served for place in places) == list(range(57))
    assert all(batch.row_id_B.tolist() == [100 + place for place in places] for places, batch in served)
    assert [len(places) for places, _ in served] == [8] * 7 + [1]
    padding = sum(int((batch.attention_mask_BT == 0).sum()) for _, batch in served)
    unsorted = sum(int((collate(rows[i : i + 8], 0).attention_mask_BT == 0).sum()) for i in range(0, 57, 8))
    assert padding < unsorted / 4


def test_pad_id_falls_back():
    tokenizer = word_level()
    assert pad_id(tokenizer) == tokenizer.pad_token_id == 3
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == tokenizer.eos_token_id == 2
    tokenizer.eos_token = None
    assert pad_id(tokenizer) == 0
