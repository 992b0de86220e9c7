"""A study in one process: as many trials as wanted, each once, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.forks import ended
from tests.sweep.studies import Formula, calls, die, once, results_of, sweep, worker
from unlearn.config.load import load_config
from unlearn.errors import ConfigError, RunError
from unlearn.sweep import engine, run_sweep, trial
from unlearn.sweep.engine import folder_of, open_study
from unlearn.tracking.files import read_json


@pytest.fixture
def formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Formula:
    made = Formula(tmp_path)
    monkeypatch.setattr(trial, "execute", made)
    monkeypatch.setattr(engine, "draw", lambda study, outcome: [])
    return made


def test_every_trial_is_an_ordinary_run_and_the_best_is_found(tmp_path: Path, formula: Formula) -> None:
    spec = sweep(tmp_path)
    told: list[int] = []
    out = run_sweep(spec, told=lambda record: told.append(record.number))
    assert [t.number for t in out.trials] == told == list(range(6))
    assert {t.state for t in out.trials} == {"finished"}
    for record in out.trials:
        config = spec.config(record.params, record.number)
        assert record.path == tmp_path / "study" / f"trial_{record.number:03d}"
        assert record.values == (results_of(config)["forget/accuracy"],)
        assert ("method.beta" in record.params) == (record.params["method.name"] == "npo")
    assert out.best is not None
    assert out.best.values == min(t.values for t in out.trials)
    assert out.best_config is not None
    assert out.best_config.optim.lr == out.best_params["optim.lr"]
    again = load_config(tmp_path / "study" / "best.yaml")
    assert (again.name, again.method, again.optim) == ("study_best", out.best_config.method, out.best_config.optim)
    kept = read_json(tmp_path / "study" / "sweep.json")
    assert kept["best"] == out.best.number
    assert [t["params"] for t in kept["trials"]] == [dict(t.params) for t in out.trials]
    assert (tmp_path / "study" / "trials.csv").read_text().splitlines()[0].startswith("trial,state,forget/accuracy,method.name,optim.lr")


def test_the_same_command_again_runs_nothing_and_more_trials_run_only_those(tmp_path: Path, formula: Formula) -> None:
    first = run_sweep(sweep(tmp_path))
    run_sweep(sweep(tmp_path))
    assert len(calls(tmp_path)) == 6
    more = run_sweep(sweep(tmp_path), trials=8)
    assert [call["trial"] for call in calls(tmp_path)] == list(range(8))
    assert [t.params for t in more.trials[:6]] == [t.params for t in first.trials]


def test_a_score_takes_the_place_of_the_objectives(tmp_path: Path, formula: Formula) -> None:
    spec = sweep(tmp_path, objectives={"score": "maximize"}, trials=3)
    out = run_sweep(spec, score=lambda results: [results["retain/accuracy"] - results["forget/accuracy"]])
    found = [results_of(spec.config(t.params)) for t in out.trials]
    assert [t.values[0] for t in out.trials] == [r["retain/accuracy"] - r["forget/accuracy"] for r in found]
    assert out.best is not None
    assert out.best.values == max(t.values for t in out.trials)


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_study_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    keys: dict[str, Any] = {"sampler": {"name": sampler, "startup": 2, "population": 2}}
    keys["objectives"] = {"forget/accuracy": "minimize", "retain/accuracy": "maximize"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    monkeypatch.setattr(trial, "execute", Formula(whole))
    expected = run_sweep(sweep(whole, **keys))
    pid = worker(sweep(broken, **keys), broken, once(broken, 3, die), tmp_path / "log")
    assert ended(pid) == -9
    monkeypatch.setattr(trial, "execute", Formula(broken))
    out = run_sweep(sweep(broken, **keys))
    begun = [call["trial"] for call in calls(whole)]  # of equal settings, only the first
    assert [call["trial"] for call in calls(broken)] == sorted([*begun, 3])
    assert [(t.params, t.values) for t in out.trials] == [(t.params, t.values) for t in expected.trials]
    assert [t.attempts for t in out.trials] == [1, 1, 1, 2, 1, 1]


def test_a_trial_whose_worker_dies_again_and_again_is_given_up(tmp_path: Path, formula: Formula) -> None:
    spec = sweep(tmp_path, retries=1, trials=2)
    for _ in range(2):
        assert ended(worker(spec, tmp_path, lambda number: die() if number == 0 else None, tmp_path / "log")) == -9
    out = run_sweep(spec)
    assert [(t.state, t.attempts) for t in out.trials] == [("lost", 2), ("finished", 1)]
    assert [call["trial"] for call in calls(tmp_path)] == [0, 0, 1]


def test_a_failing_trial_is_recorded_with_its_sentence_and_the_others_go_on(tmp_path: Path, formula: Formula) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise RunError("train/loss at step 3 must be finite; found nan.")
        if number == 2:
            raise ZeroDivisionError("division by zero")

    formula.before = fail
    out = run_sweep(sweep(tmp_path))
    assert [t.state for t in out.trials] == ["finished", "failed", "failed", "finished", "finished", "finished"]
    assert out.trials[1].reason == "train/loss at step 3 must be finite; found nan."
    assert out.trials[2].reason == "ZeroDivisionError: division by zero"
    formula.before = lambda number: None
    assert run_sweep(sweep(tmp_path)).count("failed") == 2
    assert run_sweep(sweep(tmp_path), again=True).count("finished") == 6
    assert [call["trial"] for call in calls(tmp_path)] == [0, 1, 2, 3, 4, 5, 1, 2]


def test_trials_that_all_fail_in_the_same_way_stop_the_study(tmp_path: Path, formula: Formula) -> None:
    def fail(number: int) -> None:
        raise RunError("the disk must have room; found none.")

    formula.before = fail
    with pytest.raises(RunError, match=r"3 trials in a row failed in the same way.*the disk must have room"):
        run_sweep(sweep(tmp_path))
    assert len(calls(tmp_path)) == 3


def test_ctrl_c_puts_the_trial_back_and_is_no_lost_worker(tmp_path: Path, formula: Formula) -> None:
    spec = sweep(tmp_path, retries=0)

    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    for _ in range(2):
        formula.before = interrupt
        with pytest.raises(KeyboardInterrupt):
            run_sweep(spec)
        kept = read_json(tmp_path / "study" / "sweep.json")
        assert [t["state"] for t in kept["trials"]] == ["finished", "finished", "interrupted"]
    formula.before = lambda number: None
    assert run_sweep(spec).count("finished") == 6
    assert [call["trial"] for call in calls(tmp_path)] == [0, 1, 2, 2, 2, 3, 4, 5]


def test_the_same_fingerprint_is_not_run_again(tmp_path: Path, formula: Formula) -> None:
    out = run_sweep(sweep(tmp_path, search={"method.name": {"choices": ["npo", "grad_diff"]}}))
    assert len(calls(tmp_path)) == len({call["fingerprint"] for call in calls(tmp_path)}) == 2
    for record in out.trials:
        if record.same_as is not None:
            first = out.trials[record.same_as]
            assert (first.params, first.values, first.path) == (record.params, record.values, record.path)
    assert sum(record.same_as is not None for record in out.trials) == 4


def test_a_grid_is_made_point_by_point(tmp_path: Path, formula: Formula) -> None:
    search = {
        "method.name": {"choices": ["npo", "grad_diff"]},
        "optim.steps": {"low": 10, "high": 30, "step": 10},
        "method.beta": {"choices": [0.1, 0.5], "when": {"method.name": "npo"}},
    }
    out = run_sweep(sweep(tmp_path, search=search, sampler="grid", trials=None))
    points = {(t.params["method.name"], t.params["optim.steps"], t.params.get("method.beta")) for t in out.trials}
    assert points == {("npo", s, b) for s in (10, 20, 30) for b in (0.1, 0.5)} | {("grad_diff", s, None) for s in (10, 20, 30)}
    assert len(out.trials) == len(calls(tmp_path)) == 9


def test_given_settings_are_tried_first(tmp_path: Path, formula: Formula) -> None:
    out = run_sweep(sweep(tmp_path, first=[{"method.name": "grad_diff", "optim.lr": 3e-4}, {"optim.lr": 1e-3}], trials=3))
    assert out.trials[0].params == {"method.name": "grad_diff", "optim.lr": 3e-4}
    assert out.trials[1].params["optim.lr"] == 1e-3


def test_the_best_keeps_the_constraints(tmp_path: Path, formula: Formula) -> None:
    free = run_sweep(sweep(tmp_path, sweep="free", trials=8))
    lrs = sorted(t.params["optim.lr"] for t in free.trials)
    bound = 3.0 + lrs[3]
    out = run_sweep(sweep(tmp_path, constraints={"generic/perplexity": {"high": bound}}, trials=8))
    assert [t.params for t in out.trials] == [t.params for t in free.trials]
    kept = [t for t in out.trials if t.params["optim.lr"] <= lrs[3]]
    assert [t.number for t in out.trials if t.feasible] == [t.number for t in kept]
    assert out.best is not None
    assert out.best.number == min(kept, key=lambda t: t.values).number
    none = run_sweep(sweep(tmp_path, sweep="none", constraints={"generic/perplexity": {"high": 2.0}}, trials=2))
    assert (none.best, none.best_params, none.front) == (None, {}, ())


def test_the_front_is_optunas(tmp_path: Path, formula: Formula) -> None:
    objectives = {"generic/perplexity": "minimize", "retain/accuracy": "maximize", "forget/accuracy": {"near": 0.5}}
    spec = sweep(tmp_path, objectives=objectives, trials=12)
    out = run_sweep(spec)
    theirs = open_study(spec, folder_of(spec)).best_trials
    assert {t.number for t in out.front} == {t.number for t in theirs}
    assert 1 < len(out.front) < 12
    assert all(t.values[2] == pytest.approx(abs(results_of(spec.config(t.params))["forget/accuracy"] - 0.5)) for t in out.trials)


def test_a_key_that_the_results_do_not_have_stops_at_once_and_costs_no_run(tmp_path: Path, formula: Formula) -> None:
    spec = sweep(tmp_path, objectives={"forget/acuracy": "minimize"})
    with pytest.raises(ConfigError, match=r"objectives.forget/acuracy must be a key of the results.*Did you mean 'forget/accuracy'"):
        run_sweep(spec)
    assert len(calls(tmp_path)) == 1


def test_another_search_under_the_same_name_is_refused(tmp_path: Path, formula: Formula) -> None:
    run_sweep(sweep(tmp_path, trials=1))
    with pytest.raises(RunError, match=r"found a study 'study' in journal with another search.optim.lr.high"):
        run_sweep(sweep(tmp_path, search={**sweep_search(), "optim.lr": {"low": 1e-5, "high": 1.0, "log": True}}, trials=1))
    with pytest.raises(RunError, match=r"with another base"):
        run_sweep(sweep(tmp_path, "optim.clip=3.0", trials=1))
    assert len(calls(tmp_path)) == 1


def sweep_search() -> dict[str, Any]:
    from tests.sweep.studies import SEARCH

    return dict(SEARCH)


def test_a_result_that_is_no_number_fails_its_trial_only(tmp_path: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.sweep import studies

    honest = results_of

    def broken(config: Any) -> dict[str, float]:
        found = honest(config)
        return {**found, "forget/accuracy": float("nan")} if config.name.endswith("1") else found

    monkeypatch.setattr(studies, "results_of", broken)
    out = run_sweep(sweep(tmp_path, trials=3))
    assert [t.state for t in out.trials] == ["finished", "failed", "finished"]
    assert out.trials[1].reason == "objectives.forget/accuracy must be a number; found nan in the results of the run."
    assert json.loads((tmp_path / "study" / "sweep.json").read_text())["trials"][1]["state"] == "failed"
