from pathlib import Path

import pytest

from tests.report.fake_runs import write_study
from unlearn.report.words import forgotten, headline, indistinguishable, verdict, verdicts
from unlearn.tracking.reader import RunRecord, read_runs

FULL = {
    "forget/accuracy": 0.02,
    "forget/accuracy_paraphrased": 0.03,
    "forget/refusal_rate": 0.95,
    "retain/accuracy": 0.98,
    "retain/accuracy_base": 1.0,
    "retain/accuracy_unseen": 0.96,
    "generic/perplexity": 3.0,
    "generic/perplexity_base": 2.5,
    "latent/c2st_auc": 0.5,
    "latent/c2st_null_low": 0.4,
    "latent/c2st_null_high": 0.6,
    "collapse/flag": 0,
}


def record(results=None, method="npo", **more):
    return RunRecord(name=more.pop("name", "x"), path=Path(), config={"method": {"name": method}}, results=results or {}, **more)


def test_one_sentence_says_everything():
    judged = verdict(record(FULL), "x")
    assert judged.sentence == (
        "Forgot (2 % of the questions are still answered; 95 % get an “unknown”); inside the model the entities cannot be told from "
        "unknown ones (AUC 0.50, chance gives 0.40 to 0.60); it keeps 98 % of the other answers (100 % before), 96 % about entities that "
        "no loss has seen, and the perplexity is 1.2 times the original; it did not collapse."
    )
    assert (judged.forgot, judged.alike, judged.collapsed) == ("yes", True, False)


def test_the_original_accuracy_is_told_where_it_is_known():
    base = record({"forget/accuracy": 0.9}, method="none")
    assert "2 % of the questions are still answered, 90 % before" in verdict(record(FULL), "x", base).sentence
    assert verdict(base, "base", base).sentence == "Not trained; it answers 90 % of the questions about the entities to be forgotten."


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({}, ""),
        ({"forget/accuracy": 0.1}, "yes"),
        ({"forget/accuracy": 0.0, "forget/accuracy_paraphrased": 0.3}, "in part"),
        ({"forget/accuracy": 0.51}, "no"),
        ({"forget/accuracy": 0.3, "forget/accuracy_base": 0.4}, "no"),
        ({"forget/accuracy": 0.3, "forget/accuracy_base": 0.0}, "in part"),
    ],
)
def test_forgetting_is_judged_by_the_worse_wording_and_against_the_original(results, expected):
    assert forgotten(record(results), None) == expected


def test_the_paraphrase_is_told_when_it_differs():
    sentence = verdict(record({**FULL, "forget/accuracy_paraphrased": 0.4}), "x").sentence
    assert sentence.startswith("Forgot in part (2 % of the questions are still answered; 40 % in other words")


@pytest.mark.parametrize(
    ("auc", "alike", "words"),
    [
        (0.7, False, "still stand apart from unknown ones (AUC 0.70, chance gives 0.40 to 0.60)"),
        (0.2, True, "though the test reads lower than chance explains"),
        (0.6, True, "cannot be told from unknown ones"),
    ],
)
def test_the_two_sample_test_is_read_against_its_null(auc, alike, words):
    run = record({**FULL, "latent/c2st_auc": auc})
    assert indistinguishable(run) is alike
    assert words in verdict(run, "x").sentence


def test_without_a_null_no_verdict():
    run = record({"latent/c2st_auc": 0.7})
    assert indistinguishable(run) is None
    assert verdict(run, "x").sentence == "A classifier separates its entities from unknown ones with an AUC of 0.70 (0.5 is chance)."


def test_collapse_and_relearning_are_told():
    results = {**FULL, "collapse/flag": 1, "collapse/reason": "repetition rose from 0.00 to 0.90"}
    judged = verdict(record({**results, "attack/relearn_recovery": 1.0, "attack/relearn_control": 0.03}), "x")
    assert judged.collapsed is True
    assert (
        "it collapsed: repetition rose from 0.00 to 0.90; relearning a few other facts brings 100 % of the forgotten ones back"
        in judged.sentence
    )
    assert judged.sentence.endswith("against 3 % of facts it never knew.")


def test_a_run_that_did_not_finish_says_so():
    failed = record(status={"state": "failed", "reason": "The gradient at step 3 must be finite; found nan."})
    assert verdict(failed, "x").sentence == "Failed (The gradient at step 3 must be finite; found nan). No results yet."
    assert verdict(record(status={"state": "running"}), "x").sentence.startswith("Still running")
    assert verdict(record(), "x").sentence == "No results yet."


def test_the_headline_counts_trained_runs(tmp_path):
    judged = verdicts(read_runs(write_study(tmp_path)))
    assert headline(judged) == (
        "Of five trained runs, five forgot, four without collapsing; one of these cannot be told from a model that never knew the entities "
        "(sae_distribution)."
    )
    assert headline([]) == headline(verdicts([record(method="none")])) == ""
    assert headline(verdicts([record({"forget/accuracy": 0.3})])) == "Of one trained run, none forgot and one did so in part."
    assert headline(verdicts([record({"forget/accuracy": 0.0})])) == "Of one trained run, one forgot."
