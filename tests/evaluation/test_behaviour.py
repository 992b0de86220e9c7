"""Kinds of answers, and utility, by hand."""

from __future__ import annotations

import pytest

from tests.toys import toy_data
from unlearn.evaluation.behaviour import behaviour, utility


def texts(target: str, stranger: str) -> dict[str, list[str]]:
    data = toy_data()
    said = {name: [row.answer for row in rows] for name, rows in data.evaluation.items()}
    said["forget_paraphrased"] = [target] * len(data.evaluation["forget_paraphrased"])
    said["unknown"] = [stranger] * len(data.evaluation["unknown"])
    return said


def test_refusing_when_strangers_get_refusals_is_no_difference() -> None:
    found = behaviour(toy_data(), texts("unknown", "unknown"), 99, 0)
    assert found["forget/answer_mix_distance"] == 0.0
    assert found["forget/answer_mix_p_value"] == 1.0
    assert found["forget/answers_refusal"] == found["unknown/answers_refusal"] == 1.0


def test_babble_where_strangers_get_refusals_is_all_the_difference() -> None:
    found = behaviour(toy_data(), texts("no no no no no no", "unknown"), 99, 0)
    assert found["forget/answer_mix_distance"] == 1.0
    assert found["forget/answers_degenerate"] == 1.0


def test_utility_is_a_harmonic_mean_and_takes_options_where_tofu_does() -> None:
    retain = {"retain/probability": 0.5, "retain/rouge_l": 1.0, "retain/truth_ratio": 0.25}
    assert utility(retain) == {"retain/utility": pytest.approx(3 / (2 + 1 + 4))}
    more = {f"{s}/{m}": 0.5 for s in ("real_authors", "world_facts") for m in ("option_probability", "rouge_l", "truth_ratio")}
    assert utility({**retain, **more}) == {"retain/utility": pytest.approx(9 / (7 + 12))}
    assert utility({"retain/probability": 0.5}) == {}
