"""From files to a summary, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import permutation_test

from tests.comparison.records import PEOPLE, measured_record, plan_of, write_all
from unlearn.comparison.conclude import conclude
from unlearn.comparison.ledger import SUMMARY, Ledger
from unlearn.report.comparison import comparison_lines, comparison_markdown, rows_of

SIX = tuple(range(6))


def test_means_tests_ranks_and_front_by_hand(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=SIX)
    write_all(
        plan,
        {
            "none": {"forget": 1.0},
            "npo": {"relearn": 0.4, "auc": 0.6},
            "rmu": {"forget": 0.1, "unseen": 0.9, "relearn": 0.5, "auc": 0.7, "cost": 9.0},  # worse in everything
            "wga": {"unseen": 0.9, "relearn": 0.0, "auc": 0.9},  # withstands the attack, is recognised
        },
    )
    summary = conclude(plan)
    rows = summary["methods"]
    assert rows["rmu"]["robustness"]["mean"] == pytest.approx(0.5)
    assert rows["rmu"]["indistinguishability"]["mean"] == pytest.approx(0.6)
    assert rows["rmu"]["results"]["retain/accuracy_unseen"]["mean"] == pytest.approx(0.9)
    assert rows["none"]["results"]["forget/accuracy"]["mean"] == 1.0
    assert [rows[name].get("pareto") for name in ("none", "npo", "rmu", "wga")] == [None, True, False, True]
    assert rows["rmu"]["dominated_by"] == ["npo"]
    assert {name: rows[name]["rank"] for name in ("npo", "rmu", "wga")} == {"npo": 1.0, "rmu": 2.0, "wga": 3.0}
    assert "rank" not in rows["none"]
    assert rows["rmu"]["score"]["p"] == pytest.approx(2 / 2**6)  # six seeds, all worse
    assert rows["rmu"]["score"]["p_holm"] == pytest.approx(4 / 2**6)  # the smaller of two, twice
    differences = [-1.0 if i == 9 else 0.0 for _ in SIX for i in range(len(PEOPLE))]  # one person of ten, in every seed
    theirs = permutation_test(
        (differences, [0.0] * 60), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=9999, rng=1
    )
    assert rows["rmu"]["results"]["retain/accuracy_unseen"]["p"] == pytest.approx(theirs.pvalue, abs=0.01)
    assert rows["wga"]["results"]["forget/accuracy"]["p"] == 1.0
    assert summary["cost"]["trial_cpu_seconds_mean"] == 4.0
    assert summary["cost"]["test_cpu_seconds"] == 4 * 6 * 30.0


def test_unfinished_methods_are_shown_but_not_ranked(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1))
    ledger = write_all(plan, {"none": {}, "npo": {}, "rmu": {"auc": 0.8}})
    ledger.test_path("rmu", 1).unlink()
    summary = conclude(plan)
    assert summary["progress"] == {"tuned": 2, "to_tune": ["wga"], "tests": 5, "tests_in_all": 8, "complete": ["npo"]}
    assert "rank" not in summary["methods"]["rmu"]
    assert "wga" not in summary["methods"]
    labels = [row[0] for row in rows_of(summary)]
    assert labels == ["none (not tuned)", "npo (reference)", "rmu (1 of 2 seeds)"]


def test_an_unfinished_reference_gives_no_tests(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ledger = write_all(plan, {"rmu": {}, "wga": {}})
    ledger.write(ledger.test_path("npo", 0), measured_record("npo", 0))
    rows = conclude(plan)["methods"]
    assert "p" not in rows["rmu"]["score"]
    assert rows["rmu"]["rank"] == 1.5


def test_tables_say_what_the_summary_says(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=SIX)
    ledger = write_all(plan, {"none": {"forget": 1.0}, "npo": {}, "rmu": {"unseen": 0.0}, "wga": {}})
    ledger.write(ledger.folder / SUMMARY, conclude(plan))
    summary = json.loads((tmp_path / SUMMARY).read_text())
    text = comparison_markdown(summary)
    row = next(line for line in text.splitlines() if line.startswith("| rmu"))
    assert "| 0.00* |" in row  # unseen people, all lost
    assert "hidden" in row
    summary["methods"]["rmu"]["results"]["generic/perplexity"]["mean"] = 47.1
    assert "| 47.1 |" in comparison_markdown(summary)
    assert comparison_lines(summary).row_count == len(summary["methods"])


def test_an_empty_ledger_concludes_nothing(tmp_path: Path) -> None:
    summary = conclude(plan_of(tmp_path))
    assert (summary["methods"], summary["progress"]["tests"]) == ({}, 0)
    assert comparison_markdown(summary).count("\n") == 1
    assert Ledger(tmp_path).test("npo", 0) == {}
