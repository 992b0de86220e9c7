import pytest
from transformers import AutoTokenizer

from unlearn.world.encyclopaedia import make_encyclopaedia
from unlearn.world.names import SYLLABLES
from unlearn.world.templates import GENERIC, MENTIONS, QUESTION_FORMAT, QUESTIONS, STATEMENTS, VALUES
from unlearn.world.tokenizer import MARK, make_tokenizer, vocabulary

NAME = "Beldor Fenkal"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def every_sentence():
    for attribute, texts in STATEMENTS.items():
        yield from (text.format(n=NAME, v=value) for text in texts for value in VALUES[attribute])
    for texts in QUESTIONS.values():
        yield from (QUESTION_FORMAT.format(question=text.format(n=NAME)) + " unknown." for text in texts)
    yield from (text.format(n=NAME, v="wanders") for text in MENTIONS)
    yield from GENERIC


def test_the_saved_tokenizer_is_fast_and_has_its_special_tokens(tokenizer):
    assert tokenizer.is_fast
    assert len(tokenizer) == len(vocabulary())
    assert tokenizer.bos_token_id == tokenizer.eos_token_id
    assert len({tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer.padding_side == "right"


def test_every_sentence_goes_in_and_comes_back(tokenizer):
    for text in every_sentence():
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_value_is_one_token(tokenizer):
    for values in VALUES.values():
        assert all(len(tokenizer(value, add_special_tokens=False).input_ids) == 1 for value in values)


def test_names_are_one_token_per_syllable(tokenizer):
    world = make_encyclopaedia(seed=0, n_known=100, n_tail=1, n_unknown=100, n_heldout=1)
    for name in (*world.known, *world.unknown):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(f"Nearby {name} wanders quietly.").input_ids)[2:6]
        assert tokens == [token for word in name.split() for token in (MARK + word[:3], word[3:])]


def test_no_token_gives_a_known_name_away(tokenizer):
    world = make_encyclopaedia(seed=0, n_known=100, n_tail=1, n_unknown=500, n_heldout=1)
    known = {(i, t) for n in world.known for i, t in enumerate(tokenizer(n, add_special_tokens=False).input_ids)}
    unknown = {(i, t) for n in world.unknown for i, t in enumerate(tokenizer(n, add_special_tokens=False).input_ids)}
    assert known <= unknown
    assert len(unknown) == 4 * len(SYLLABLES)


def test_offsets_cover_the_text_without_overlap(tokenizer):
    text = f"Q: Where was {NAME} born? A: Ashbury"
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    pieces = [text[start:end] for start, end in encoded.offset_mapping]
    assert "".join(pieces) == text
    assert [piece.strip() for piece in pieces[4:8]] == ["Bel", "dor", "Fen", "kal"]


def test_a_word_that_only_begins_like_a_name_is_not_cut(tokenizer):
    assert tokenizer.tokenize("Beldory") == [tokenizer.unk_token]
    assert tokenizer.tokenize("Bel") == [MARK + "Bel"]
