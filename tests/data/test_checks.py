"""What ``check_streams`` refuses, by message."""

from __future__ import annotations

import dataclasses

import pytest

from tests.data.entity_data import FORGET, HELDOUT, RETAIN, UNKNOWN, UNSEEN, entity_data, rows
from unlearn.data.checks import check_streams, fingerprinted, summary
from unlearn.errors import DataError
from unlearn.types import Row


def problems(**changed):
    with pytest.raises(DataError) as error:
        check_streams(entity_data(**changed))
    return str(error.value).splitlines()


def test_sound_data_passes():
    check_streams(entity_data())


def test_known_anchors_may_be_the_retain_rows():
    data = entity_data()
    assert data.streams["known"] == data.streams["retain"]
    check_streams(data)


def test_empty_and_odd_sets():
    assert problems(**{"streams/known": (), "latent/unknown": (), "streams/other": ()}) == [
        "Stream known must hold rows; found none.",
        "Latent set unknown must hold rows that name their entity; found none.",
        "Streams must be forget, retain, known, unknown; found 'other' too.",
    ]


@pytest.mark.parametrize(
    "key",
    ["streams/retain", "streams/known", "streams/unknown", "evaluation/retain", "evaluation/retain_unseen", "evaluation/unknown"]
    + ["latent/known", "latent/unknown"],
)
def test_forget_entity_elsewhere(key):
    found = problems(**{key: (*entity_data().streams["retain"][:0], *rows(FORGET, 2, 900))})
    assert found[0] == f"Forget entities must not occur in {key.replace('/', ' ')}; 2 rows are about Ann Lee."


def test_forget_entity_named_in_anothers_question():
    row = Row(row_id=900, entity=RETAIN, prompt="Did Jaime Vasquez meet Ann Lee?", answer="Yes", mentions=(RETAIN,))
    assert problems(**{"streams/retain": (row,)}) == ["Forget entities must not occur in streams retain; 1 rows are about Ann Lee."]


def test_name_inside_another_word_and_name_in_an_answer_are_no_overlap():
    near = Row(row_id=900, entity=RETAIN, prompt="Did Jaime Vasquez visit Ann Leeds?", answer="He met Ann Lee.", mentions=(RETAIN,))
    check_streams(entity_data(**{"streams/retain": (near,)}))


def test_other_evaluation_sets_may_ask_about_forget_entities():
    check_streams(entity_data(**{"evaluation/forget_paraphrased": rows(FORGET, 2, 900), "evaluation/stress": rows(FORGET, 2, 900)}))


@pytest.mark.parametrize(("key", "trained"), [("evaluation/retain_unseen", RETAIN), ("latent/known", RETAIN), ("latent/unknown", UNKNOWN)])
def test_unseen_entities_that_a_stream_trains_on(key, trained):
    found = problems(**{key: rows(trained, 2, 900)})
    assert found == [f"Entities of {key.replace('/', ' ')} must be in no stream; 2 rows are about {trained}."]


def test_one_id_for_two_rows():
    found = problems(**{"evaluation/retain": rows(RETAIN, 1, 100, answer="Chile") + rows(RETAIN, 3, 0)[1:]})
    assert found == [
        "A row id must stand for one row; 3 ids stand for several: "
        "100: 'Where was Jaime Vasquez born in 0?' and 'Where was Jaime Vasquez born in 0?'; "
        "1: 'Where was Ann Lee born in 1?' and 'Where was Jaime Vasquez born in 1?'; "
        "2: 'Where was Ann Lee born in 2?' and 'Where was Jaime Vasquez born in 2?'."
    ]


def test_all_problems_come_together_with_the_first_five_names():
    many = tuple(row for i in range(7) for row in rows(f"Ann Lee{'abcdefg'[i]}", 1, 500 + i))
    data = {"streams/forget": many, "streams/retain": many, "streams/unknown": ()}
    found = problems(**data)
    assert found[0] == "Stream unknown must hold rows; found none."
    assert found[1] == (
        "Forget entities must not occur in streams retain; 7 rows are about Ann Leea, Ann Leeb, Ann Leec, Ann Leed, Ann Leee and 2 more."
    )
    assert len(found) == 2


def test_fingerprint_follows_the_content_only():
    first, again = fingerprinted(entity_data()), fingerprinted(entity_data())
    assert first.fingerprint == again.fingerprint
    assert len(first.fingerprint) == 16
    noted = fingerprinted(dataclasses.replace(entity_data(), notes={"a": "b"}))
    changed = [
        fingerprinted(entity_data(**{"latent/known": rows(UNSEEN, 2, 200)})),
        fingerprinted(entity_data(**{"latent/known": rows(UNSEEN, 3, 200, answer="Chile")})),
        fingerprinted(dataclasses.replace(entity_data(), generic=("Other.",))),
    ]
    assert noted.fingerprint == first.fingerprint
    assert len({first.fingerprint, *(data.fingerprint for data in changed)}) == 4


def test_summary_counts():
    counts = summary(entity_data())
    assert counts["streams/forget"] == "5 rows, 1 entities"
    assert counts["latent/unknown"] == "3 rows, 1 entities"
    assert HELDOUT not in str(counts)
