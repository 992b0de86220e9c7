"""What is done is not done again, what fails stops nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unlearn.comparison.work as work
from tests.comparison.records import measured_record, plan_of, tuning_record, write_all
from unlearn.comparison.ledger import STUDY, Ledger
from unlearn.comparison.plan import Plan
from unlearn.config.layers import Layer
from unlearn.errors import DataError, RunError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """``tune`` and ``measure`` that note their calls and write made-up files; ``rmu`` cannot be tuned, ``wga`` fails with seed 1."""
    made: list[tuple[str, ...]] = []

    def tune(plan: Plan, method: str) -> Mapping[str, Any]:
        ledger = Ledger(plan.ledger)
        if not ledger.tuning(method):
            made.append(("tune", method))
            if method == "rmu":
                raise DataError("no rows.")
            ledger.write(ledger.tuning_path(method), tuning_record(method))
        return {"optim.lr": 0.1}

    def measure(plan: Plan, method: str, seed: int, params: Mapping[str, Any]) -> None:
        ledger = Ledger(plan.ledger)
        if not ledger.test(method, seed):
            made.append((method, str(seed)))
            if (method, seed) == ("wga", 1):
                raise ZeroDivisionError("oh")
            ledger.write(ledger.test_path(method, seed), measured_record(method, seed))

    monkeypatch.setattr(work, "tune", tune)
    monkeypatch.setattr(work, "measure", measure)
    return made


def test_failures_stop_nothing_else(calls: list[tuple[str, ...]], tmp_path: Path) -> None:
    summary, failures = work.compare(plan_of(tmp_path, seeds=(0, 1, 2)))
    assert failures == {"rmu, tuning": "no rows.", "wga, seed 1": "ZeroDivisionError: oh"}
    assert set(summary["methods"]) == {"none", "npo", "wga"}
    assert summary["methods"]["wga"]["seeds"] == [0, 2]
    assert ("tune", "none") not in calls


def test_files_are_the_state(calls: list[tuple[str, ...]], tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods=("none", "npo"))
    write_all(plan, {"none": {}, "npo": {}})
    _, failures = work.compare(plan)
    assert (calls, failures) == ([], {})
    Ledger(tmp_path).test_path("npo", 1).unlink()
    work.compare(plan)
    assert calls == [("npo", "1")]
    work.compare(replace(plan, seeds=(0, 1, 2)))  # more seeds, more methods: only what is new
    assert calls[1:] == [("none", "2"), ("npo", "2")]
    Ledger(tmp_path).tuning_path("npo").unlink()
    work.compare(plan)
    assert calls[3:] == [("tune", "npo")]


def test_torn_files_are_made_again(calls: list[tuple[str, ...]], tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods=("npo",))
    ledger = write_all(plan, {"npo": {}})
    ledger.test_path("npo", 0).write_text('{"method": "np')
    work.compare(plan)
    assert calls == [("npo", "0")]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trials": 5}, "trials must be 2 as in .*study.json.*; found 5. Take another --ledger"),
        ({"suite": "none"}, "attacks must be 'relearn' as in"),
        ({"base": (Layer({"data": {"source": "world"}, "optim": {"steps": 7}}),)}, "config.optim.steps must be 5 as in .*found 7"),
    ],
)
def test_other_comparisons_are_refused(changed: dict[str, Any], message: str, calls: list[tuple[str, ...]], tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path, methods=("none",)), base=(Layer({"data": {"source": "world"}, "optim": {"steps": 5}}),))
    work.compare(plan)
    with pytest.raises(RunError, match=message):
        work.compare(replace(plan, **changed))
    work.compare(
        replace(plan, base=(*plan.base, Layer({"out": "elsewhere", "trainer": {"threads": 1}})))
    )  # where runs are kept changes nothing
    assert (tmp_path / STUDY).is_file()
