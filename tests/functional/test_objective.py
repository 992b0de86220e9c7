"""The tuning score and the axes: what they want, and in which order."""

from __future__ import annotations

import math

import pytest
from scipy.stats import hmean

from unlearn.functional.objective import AXES, axes, harm, harmonic_mean, parts, tuning_score

GOOD = {
    "forget/accuracy": 0.0,
    "forget/accuracy_paraphrased": 0.1,
    "retain/accuracy": 0.98,
    "retain/accuracy_base": 1.0,
    "retain/accuracy_unseen": 0.95,
    "retain/accuracy_unseen_base": 1.0,
    "generic/perplexity": 2.5,
    "generic/perplexity_base": 2.4,
    "latent/c2st_auc": 0.6,
    "collapse/flag": 0.0,
}


def test_parts_by_hand() -> None:
    wanted = {
        "forgetting": 1.0,
        "other_words": 0.9,
        "retention": 0.98,
        "unseen": 0.95,
        "fluency": 0.96,
        "indistinguishability": 0.8,
    }
    assert parts(GOOD) == pytest.approx(wanted)
    assert tuning_score(GOOD) == pytest.approx(hmean(list(wanted.values())))
    assert harmonic_mean([0.2, 0.4, 0.9]) == pytest.approx(hmean([0.2, 0.4, 0.9]))


def test_beyond_the_original_counts_no_more() -> None:
    better = parts({**GOOD, "generic/perplexity": 1.5, "latent/c2st_auc": 0.2, "retain/accuracy_base": 0.9})
    assert (better["fluency"], better["indistinguishability"], better["retention"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changed", "damage"),
    [
        ({"retain/accuracy": 0.45}, 0.5),
        ({"retain/accuracy_unseen": 0.0}, 1.0),
        ({"generic/perplexity": 2.4 * 2.2}, 0.5),
        ({"generic/perplexity": math.inf}, 1.0),
        ({"collapse/flag": 1.0}, 1.0),
        ({}, 0.0),
    ],
)
def test_damage_comes_first(changed: dict[str, float], damage: float) -> None:
    results = {**GOOD, **changed}
    assert harm(results) == pytest.approx(damage)
    if damage:
        assert tuning_score(results) == pytest.approx(-damage)
        remembers_everything = {**GOOD, "forget/accuracy": 1.0}
        assert tuning_score(results) < tuning_score(remembers_everything) == 0.0


def test_every_part_that_gets_worse_lowers_the_score() -> None:
    for key, worse in (
        ("forget/accuracy", 0.3),
        ("forget/accuracy_paraphrased", 0.4),
        ("retain/accuracy", 0.92),
        ("retain/accuracy_unseen", 0.92),
        ("generic/perplexity", 2.6),
        ("latent/c2st_auc", 0.9),
    ):
        assert tuning_score({**GOOD, key: worse}) < tuning_score(GOOD), key


def test_axes_by_hand() -> None:
    attacked = {"attack/relearn_excess": 0.5, "attack/relearn_gold_excess": 0.1, "attack/probe_excess": -0.2, "cost/train_cpu_seconds": 7.0}
    found = axes({**GOOD, **attacked})
    assert list(found) == list(AXES)
    assert found == pytest.approx({"forgetting": 0.9, "retention": 0.95, "indistinguishability": 0.8, "robustness": 0.6, "cost": 7.0})
    assert axes({**GOOD, "attack/probe_excess": -0.2})["robustness"] == 1.0
    unattacked = axes(GOOD)
    assert math.isnan(unattacked["robustness"])
    assert unattacked["cost"] == 0.0
