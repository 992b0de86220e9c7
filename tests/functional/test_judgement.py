"""Verdicts, by hand."""

import pytest

from unlearn.functional.judgement import attack_excesses, judge

FINE = {
    "forget/accuracy": 0.0,
    "forget/accuracy_paraphrased": 0.02,
    "retain/accuracy": 0.98,
    "retain/accuracy_base": 1.0,
    "generic/perplexity": 2.9,
    "generic/perplexity_base": 2.8,
    "collapse/flag": 0.0,
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"attack/relearn_excess": 0.05, "attack/steer_excess": 0.0}, "erased"),
        ({"attack/relearn_excess": 0.5, "attack/relearn_excess/ci_low": 0.3}, "hidden"),
        ({"attack/relearn_excess": 0.5, "attack/relearn_excess/ci_low": -0.1}, "erased"),
        ({"attack/patch_excess": 0.5, "attack/patch_excess/ci_low": 0.4, "attack/patch_gold_excess": 0.45}, "erased"),
        ({"attack/patch_excess": 0.9, "attack/patch_excess/ci_low": 0.8, "attack/patch_gold_excess": 0.45}, "hidden"),
        ({"attack/relearn_excess": 0.9, "forget/accuracy_paraphrased": 0.3}, "not forgotten"),
        ({"attack/relearn_excess": 0.9, "retain/accuracy": 0.5}, "damaged"),
        ({"attack/relearn_excess": 0.0, "retain/accuracy_unseen": 0.7, "retain/accuracy_unseen_base": 1.0}, "damaged"),
        ({"attack/relearn_excess": 0.0, "generic/perplexity": 4.0}, "damaged"),
        ({"attack/relearn_excess": 0.0, "generic/perplexity": float("nan")}, "damaged"),
        ({"attack/relearn_excess": 0.0, "collapse/flag": 1.0}, "damaged"),
        ({}, ""),
    ],
)
def test_the_word(changes, word):
    assert judge({**FINE, **changes}).word == word


def test_the_reason_names_the_attack_and_the_number():
    found = judge({**FINE, "attack/relearn_excess": 0.5, "attack/steer_excess": 0.8, "attack/search_excess": 0.0})
    assert found.reason == "beyond the control: steer +0.80, relearn +0.50"
    assert "steer -0.02" in judge({**FINE, "attack/steer_excess": -0.02, "attack/relearn_excess": -0.1}).reason
    assert "retain accuracy 0.50 (was 1.00)" in judge({**FINE, "retain/accuracy": 0.5}).reason


def test_a_model_of_unknown_origin_is_judged_by_its_attacks_alone():
    assert judge({"attack/relearn_excess": 0.4}).word == "hidden"


def test_what_the_gold_model_gives_is_taken_off_but_never_added():
    results = {"attack/a_excess": 0.3, "attack/a_gold_excess": -0.2, "attack/b_excess": float("nan"), "attack/a_gold_excess/ci_low": 0.1}
    assert attack_excesses(results) == {"a": (0.3, 0.3)}
