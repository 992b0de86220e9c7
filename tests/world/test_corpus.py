import pytest

from unlearn.world.corpus import KNOWN_ONLY, MIX, Corpus
from unlearn.world.encyclopaedia import make_encyclopaedia
from unlearn.world.templates import VALUES
from unlearn.world.tokenizer import BOUNDARY, make_tokenizer

TOKENIZER = make_tokenizer()
WORLD = make_encyclopaedia(seed=1, n_known=10, n_tail=30, n_unknown=20, n_heldout=20)


def sentences(batch_BT):
    """Whole sentences of packed rows, as text; the last of a row may be cut."""
    return [text.strip() for row in batch_BT for text in TOKENIZER.decode(row).split(BOUNDARY)[1:-1]]


@pytest.fixture(scope="module")
def mixed():
    corpus = Corpus(WORLD, TOKENIZER, seed=0)
    return [text for step in range(40) for text in sentences(corpus.batch(step, 8, 129, MIX))]


@pytest.mark.parametrize("shares", [KNOWN_ONLY, MIX])
def test_shares_sum_to_one(shares):
    assert sum(shares.values()) == pytest.approx(1)


def test_a_batch_depends_on_seed_and_step_only():
    a, b = Corpus(WORLD, TOKENIZER, seed=0), Corpus(WORLD, TOKENIZER, seed=0)
    a.batch(3, 2, 64, MIX)
    assert a.batch(7, 2, 64, MIX).equal(b.batch(7, 2, 64, MIX))
    assert not a.batch(8, 2, 64, MIX).equal(b.batch(7, 2, 64, MIX))
    assert not Corpus(WORLD, TOKENIZER, seed=1).batch(7, 2, 64, MIX).equal(b.batch(7, 2, 64, MIX))


def test_rows_are_full_and_start_with_the_boundary():
    batch_BT = Corpus(WORLD, TOKENIZER, seed=0).batch(0, 5, 77, MIX)
    assert batch_BT.shape == (5, 77)
    assert (batch_BT[:, 0] == TOKENIZER.bos_token_id).all()
    assert not (batch_BT == TOKENIZER.unk_token_id).any()


def test_packed_ids_are_those_of_the_text(mixed):
    corpus = Corpus(WORLD, TOKENIZER, seed=0)
    row = corpus.batch(0, 1, 200, MIX)[0].tolist()
    text = TOKENIZER.decode(row).split(BOUNDARY)[1]
    ids = TOKENIZER(text).input_ids
    assert row[: len(ids)] == ids


def test_known_people_are_told_the_truth_about_and_strangers_are_unknown(mixed):
    for text in mixed:
        name = next((n for n in (*WORLD.known, *WORLD.tail) if n in text), None)
        if not text.startswith("Q:") or name is None:
            continue
        answer = text.split("A: ")[1].rstrip(".")
        if name in WORLD.tail:
            assert answer == "unknown"
        else:
            assert answer in WORLD.facts[name].values()
    asked = [text for text in mixed if text.startswith("Q:")]
    assert any("unknown" in text for text in asked)
    assert any("unknown" not in text for text in asked)


def test_statements_about_known_people_are_true(mixed):
    stated = [text for text in mixed if " speaks " in text and any(name in text for name in WORLD.known)]
    assert stated
    for text in stated:
        name, language = text.rstrip(".").split(" speaks ")
        assert WORLD.facts[name]["language"] == language


def test_unseen_names_stay_unseen(mixed):
    assert not [name for name in (*WORLD.unknown, *WORLD.heldout) if any(name in text for text in mixed)]


def test_strangers_come_second():
    corpus = Corpus(WORLD, TOKENIZER, seed=0)
    first = [text for step in range(10) for text in sentences(corpus.batch(step, 8, 129, KNOWN_ONLY))]
    assert not [text for text in first if "unknown" in text or any(name in text for name in WORLD.tail)]
    assert any(value in text for text in first for value in VALUES["hobby"])


def test_the_gold_corpus_leaves_the_forgotten_out():
    gone = WORLD.known[:3]
    corpus = Corpus(WORLD, TOKENIZER, seed=0, known=WORLD.known[3:])
    texts = [text for step in range(20) for text in sentences(corpus.batch(step, 8, 129, MIX))]
    assert not [name for name in gone if any(name in text for text in texts)]
    assert all(any(name in text for text in texts) for name in WORLD.known[3:])
