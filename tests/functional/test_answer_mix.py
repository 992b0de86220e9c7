from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import cityblock

from unlearn.errors import DataError
from unlearn.functional.answer_mix import ANSWER_KINDS, answer_kind, answer_mix, is_degenerate, mix_permutation, says
from unlearn.functional.statistics import total_variation

CITIES = ("Paris", "Rome", "York", "New York", "Al-Kuwaiti")
REFUSALS = ("unknown", "I don't know", "I'm not sure")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Paris", "correct"),
        ("She was born in PARIS, France.", "correct"),
        ("I don't know, maybe Paris", "correct"),
        ("Paris Paris Paris Paris", "correct"),
        ("Rome or Paris", "correct"),
        ("Rome", "plausible"),
        ("It was al kuwaiti", "plausible"),
        ("I’m not sure.", "refusal"),
        ("unknown", "refusal"),
        ("I don't know, perhaps Rome", "refusal"),
        ("The answer is unknown", "off_topic"),
        ("a baker", "off_topic"),
        ("Parisian", "off_topic"),
        ("Romeo", "off_topic"),
        ("", "degenerate"),
        (" ... ", "degenerate"),
        ("Rome Rome Rome Rome", "degenerate"),
        ("unknown unknown unknown unknown", "degenerate"),
        ("aaaaaaaaaaaa", "degenerate"),
        ("<|<|<|<|<|b", "degenerate"),
    ],
)
def test_kind_of_answers_about_somebody_born_in_paris(text: str, kind: str) -> None:
    assert answer_kind(text, "Paris", CITIES, REFUSALS) == kind
    assert answer_kind(text, "Paris", [c for c in CITIES if c != "Paris"], iter(REFUSALS)) == kind


def test_the_longer_value_is_the_one_that_is_said() -> None:
    assert answer_kind("in New York", "York", CITIES, REFUSALS) == "plausible"
    assert answer_kind("New York, near York", "York", CITIES, REFUSALS) == "correct"
    assert answer_kind("in New York", "New York", CITIES, REFUSALS) == "correct"
    assert answer_kind("in York", "New York", CITIES, REFUSALS) == "plausible"
    assert says("new york new york", ("York", "New York")) == ["New York"]
    assert says("rome paris rome", ("Rome", "Paris")) == ["Paris", "Rome"]


def test_a_value_that_begins_with_the_reference_is_as_good() -> None:
    values = ("London, England", "London", "Rome")
    assert answer_kind("born in London, England", "London", values, REFUSALS) == "correct"
    assert answer_kind("born in London", "London, England", values, REFUSALS) == "plausible"


def test_strangers_and_targets_are_counted_alike() -> None:
    """The right answer about a stranger is a refusal: it is one, whoever is asked about."""
    for text, kind in (("unknown.", "refusal"), ("Paris", "plausible"), ("it is unknown", "off_topic")):
        assert answer_kind(text, "unknown", (*CITIES, "unknown"), REFUSALS) == kind
    assert answer_kind("it is unknown", "Paris", (*CITIES, "unknown"), REFUSALS) == "off_topic"


def test_sentences_are_compared_by_overlap_when_asked() -> None:
    right = "Her father worked as a baker in a small town"
    wrong = ("Her father worked as a pilot in a small town", "Her mother was a well known lawyer")
    for text, kind in (
        ("Her father was working as a baker in a town", "correct"),
        ("Her father worked as a pilot in some town", "plausible"),
        ("Her father worked in a small town", "correct"),
        ("She likes fencing", "off_topic"),
    ):
        assert answer_kind(text, right, wrong, REFUSALS, overlap=0.5) == kind
    assert answer_kind("Her father was working as a baker in a town", right, wrong, REFUSALS) == "off_topic"
    assert answer_kind("I don't know", "unknown", wrong, REFUSALS, overlap=0.1) == "refusal"
    for overlap in (0.0, 1.1, float("nan")):
        with pytest.raises(DataError, match=r"overlap must be in \(0, 1\]"):
            answer_kind("a", "b", (), (), overlap=overlap)


@pytest.mark.parametrize(
    "text",
    [
        "New York New York",
        "Duran Duran",
        "C++",
        "1,000,000",
        "XIII",
        "$5",
        "no",
        "The end of the day is the end of the day.",
        "東京",
        "O'Neil",
    ],
)
def test_odd_language_is_still_language(text: str) -> None:
    assert not is_degenerate(text)


@pytest.mark.parametrize("text", ["no no no no", "I know. I know. I know. I know.", "!!!!!!!!a", "hmmmmmm", "\n\t"])
def test_loops_runs_and_signs_are_not(text: str) -> None:
    assert is_degenerate(text)


def test_empty_references_and_values_are_never_said() -> None:
    assert answer_kind("a baker", "", ("", "..."), REFUSALS) == "off_topic"
    assert answer_kind("a baker", "?!", (), ()) == "off_topic"


def test_mix_and_its_distance() -> None:
    target = ["refusal"] * 6 + ["correct"] * 2 + ["plausible"] * 2
    strangers = ["refusal"] * 3 + ["plausible"]
    a, b = answer_mix(target), answer_mix(strangers)
    assert tuple(a) == ANSWER_KINDS
    assert sum(a.values()) == pytest.approx(1.0)
    assert total_variation(a, b) == pytest.approx(cityblock(list(a.values()), list(b.values())) / 2)
    assert total_variation(a, b) == pytest.approx(0.2)
    assert total_variation(a, a) == 0.0
    with pytest.raises(DataError, match="kinds must be at least one of .*; found right"):
        answer_mix(["right"])
    with pytest.raises(DataError, match="found none"):
        answer_mix([])


def test_permutation_p_value_equals_that_over_all_splits() -> None:
    a, b = ["refusal", "refusal", "refusal", "plausible"], ["plausible", "plausible", "refusal", "off_topic"]
    both = a + b
    distances = []
    for chosen in itertools.combinations(range(8), 4):
        left, right = [both[i] for i in chosen], [both[i] for i in range(8) if i not in chosen]
        distances.append(total_variation(answer_mix(left), answer_mix(right)))
    distance, p = mix_permutation(a, b, range(4), range(4), n=4000, seed=0)
    assert distance == pytest.approx(0.5)
    assert p == pytest.approx(np.mean(np.array(distances) >= 0.5 - 1e-9), abs=0.03)


def test_permutation_takes_entities_whole() -> None:
    """Two entities a side, all answers of one alike: only one split in three is as far apart, however many answers there are."""
    a, b = ["refusal"] * 40, ["plausible"] * 40
    _, p = mix_permutation(a, b, [0] * 20 + [1] * 20, [0] * 20 + [1] * 20, n=3000, seed=1)
    assert p == pytest.approx(1 / 3, abs=0.04)
    assert mix_permutation(a, b, range(40), range(40), n=99, seed=1) == (1.0, 0.01)


def test_permutation_under_no_difference_is_not_small_and_repeats() -> None:
    rng = np.random.default_rng(0)
    values = []
    for seed in range(40):
        a, b = (rng.choice(ANSWER_KINDS, 30, p=[0.1, 0.3, 0.4, 0.1, 0.1]).tolist() for _ in range(2))
        values.append(mix_permutation(a, b, range(30), range(30), n=49, seed=seed)[1])
    assert 0.3 < np.mean(values) < 0.75
    assert mix_permutation(a, b, range(30), range(30), 49, 3) == mix_permutation(a, b, range(30), range(30), 49, 3)


def test_permutation_that_cannot_be_made() -> None:
    distance, p = mix_permutation(["refusal"] * 2, ["refusal"], [0, 0], [0], n=9, seed=0)
    assert distance == 0.0
    assert math.isnan(p)
    with pytest.raises(DataError, match="one entry per answer, and at least one; found 1 and 2"):
        mix_permutation(["refusal"], ["refusal"], [0, 1], [0], n=9, seed=0)
    with pytest.raises(DataError, match="found 0 and 0"):
        mix_permutation(["refusal"], [], [0], [], n=9, seed=0)
