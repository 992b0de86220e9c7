from pathlib import Path

import pytest

from tests.report.fake_runs import write_study
from unlearn.report.headline import headline
from unlearn.report.pool import pool
from unlearn.report.words import forgotten, indistinguishable, verdict, verdicts
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


def attacked(relearn=0.0, steer=0.0, control=0.0):
    """Results of two attacks; a share gotten out, and what the control gives."""
    found = {"attack/relearn_recovery": relearn, "attack/relearn_control": control, "attack/steer_accuracy": steer}
    for name, share in (("relearn", relearn), ("steer", steer)):
        found |= {f"attack/{name}_excess": share - control, f"attack/{name}_excess/ci_low": share - control - 0.02}
    return found


def test_one_sentence_says_everything():
    judged = verdict(record(FULL), "x")
    assert judged.sentence == (
        "Stopped answering (2 % of the questions are still answered; 95 % get an “unknown”); inside the model a classifier does not tell "
        "the entities from unknown ones (C2ST AUC 0.50, chance gives 0.40 to 0.60); whether the facts are erased or only hidden was not "
        "tested; it keeps 98 % of the other answers (100 % before), 96 % about entities that no loss has seen, and the perplexity is 1.2 "
        "times the original; it did not collapse."
    )
    assert (judged.forgot, judged.alike, judged.collapsed, judged.erased) == ("yes", True, False, False)


KEPT = {**FULL, "generic/perplexity": 2.5}


@pytest.mark.parametrize(
    ("results", "words", "erased"),
    [
        (attacked(1.0, control=0.03), "(C2ST AUC 0.50, chance gives 0.40 to 0.60), but relearning a few other facts brings 100 %", False),
        (attacked(0.0, 0.71), "and attacks get facts out (steer 71 % beyond their controls)", False),
        (attacked(0.9, 0.71), "and other attacks get facts out as well (steer 71 % beyond their controls)", False),
        (attacked(0.05), "none of 2 attacks gets facts out beyond its control: erased, as far as that tells", True),
        ({**attacked(0.05), "retain/accuracy": 0.5}, "none of 2 attacks gets facts out beyond its control; it keeps 50 %", False),
        ({**attacked(0.5), "attack/relearn_gold": 0.6, "attack/relearn_gold_excess": 0.6}, "60 % in a model that never saw them", True),
        ({"attack/lens_excess": 0.0}, "the one attack that was made does not get facts out", True),
        ({}, "whether the facts are erased or only hidden was not tested", False),
    ],
)
def test_only_attacks_say_erased(results, words, erased):
    judged = verdict(record({**KEPT, **results}), "x")
    assert words in judged.sentence
    assert judged.erased is erased
    assert ("erased, as far" in judged.sentence) is erased


def seeds(*each, name="x"):
    """Runs that differ in their seed."""
    return [
        RunRecord(name=f"{name}/seed{i}", path=Path(), config={"method": {"name": name}, "seed": i}, results={**KEPT, **one})
        for i, one in enumerate(each)
    ]


def test_a_setting_is_erased_only_with_every_seed():
    [whole] = verdicts(pool(seeds(attacked(0.0), attacked(0.01))))
    [torn] = verdicts(pool(seeds(attacked(0.0), attacked(0.4))))
    [part] = verdicts(pool(seeds(attacked(0.0), {})))
    assert [v.erased for v in (whole, torn, part)] == [True, False, False]
    assert [v.fate.word for v in (whole, torn, part)] == ["erased", "hidden", ""]
    assert torn.fate.counted in ("erased 1, hidden 1", "hidden 1, erased 1")
    assert torn.fate.reason.startswith("seed 0: no attack of 2")
    assert torn.fate.leaks == {"relearn": pytest.approx(0.2)}
    assert "but relearning a few other facts brings 20 %" in torn.sentence


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
    assert sentence.startswith("Stopped answering in part (2 % of the questions are still answered; 40 % in other words")


@pytest.mark.parametrize(
    ("auc", "alike", "words"),
    [
        (0.7, False, "still tells the entities from unknown ones (C2ST AUC 0.70, chance gives 0.40 to 0.60)"),
        (0.2, True, "does not tell the entities from unknown ones, though it reads below chance"),
        (0.6, True, "does not tell the entities from unknown ones (C2ST AUC 0.60"),
    ],
)
def test_the_two_sample_test_is_read_against_its_null(auc, alike, words):
    run = record({**FULL, "latent/c2st_auc": auc})
    assert indistinguishable(run) is alike
    assert words in verdict(run, "x").sentence


def test_without_a_null_no_verdict():
    run = record({"latent/c2st_auc": 0.7})
    assert indistinguishable(run) is None
    assert verdict(run, "x").sentence == (
        "A classifier inside the model separates its entities from unknown ones with an AUC of 0.70 (0.5 is chance)."
    )


def test_collapse_and_relearning_are_told():
    results = {**FULL, "collapse/flag": 1, "collapse/reason": "repetition rose from 0.00 to 0.90"}
    judged = verdict(record({**results, "attack/relearn_recovery": 1.0, "attack/relearn_control": 0.03}), "x")
    assert judged.collapsed is True
    assert "brings 100 % of the forgotten ones back (against 3 % of facts it never knew)" in judged.sentence
    assert judged.sentence.endswith("it collapsed: repetition rose from 0.00 to 0.90.")


def test_a_run_that_did_not_finish_says_so():
    failed = record(status={"state": "failed", "reason": "The gradient at step 3 must be finite; found nan."})
    assert verdict(failed, "x").sentence == "Failed (The gradient at step 3 must be finite; found nan). No results yet."
    assert verdict(record(status={"state": "running"}), "x").sentence.startswith("Still running")
    assert verdict(record(), "x").sentence == "No results yet."


START = "Of five trained runs, five stopped answering, four without collapsing. Inside the model, a classifier does not tell the entities "


def test_the_headline_says_what_was_measured_and_what_was_not(tmp_path):
    plain, tried = (verdicts(read_runs(write_study(tmp_path / kind, attacks=kind == "tried"))) for kind in ("plain", "tried"))
    assert headline(plain) == START + (
        "from unknown ones in one of these (sae_distribution). No attack was made, so whether the facts are erased or only hidden was not "
        "tested."
    )
    assert headline(tried) == START + (
        "from unknown ones in one of these (sae_distribution), but facts come back under attack (up to 78 % beyond the control, by "
        "relearn). Facts come back under attack in all of the others."
    )
    assert headline([]) == headline(verdicts([record(method="none")])) == ""
    assert headline(verdicts([record({"forget/accuracy": 0.3})])) == "Of one trained run, none stopped answering and one did so in part."


APART = {"latent/c2st_auc": 0.9}


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ({"a": attacked(0.0)}, "in it, and none of two attacks gets facts out: erased, as far as that tells."),
        ({"a": attacked(0.0), "b": attacked(0.6)}, "but facts come back under attack in one of them (b) (up to 60 % beyond the control"),
        ({"a": attacked(0.0), "b": attacked(0.6)}, "and none of two attacks gets facts out in one (a): erased, as far as that tells."),
        ({"a": attacked(0.0), "b": {}}, "; whether facts come back under attack in one (b) was not tested."),
        ({"a": {}, "b": APART}, "in one of these (a). No attack was made, so whether"),
        ({"a": {**APART, **attacked(0.0)}, "b": {**APART, **attacked(0.6)}}, "in one of these; none of two attacks gets facts out in"),
        ({"a": {**APART, **attacked(0.6)}, "b": APART}, "Facts come back under attack in the one of these that was attacked."),
        ({"a": attacked(0.6), "b": APART}, "Whether facts come back in the other was not tested."),
        ({"a": {**APART, **attacked(0.0), "retain/accuracy": 0.5}}, "No attack gets facts out of it, but it is damaged."),
    ],
)  # fmt: skip
def test_the_headline_calls_erased_only_what_withstood_attacks(runs, words):
    judged = verdicts([record({**KEPT, **results}, name=name) for name, results in runs.items()])
    text = headline(judged)
    assert words in text
    assert ("erased, as far" in text) == any(v.erased for v in judged)
