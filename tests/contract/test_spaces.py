"""Every method whose weights are trained says what tuning may turn, and every setting of it makes a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlearn.cli.matrix import chosen
from unlearn.comparison.plan import Plan, read_plan, tunable
from unlearn.config.space import COMMON, default_point, method_space
from unlearn.config.sweep import load_sweep
from unlearn.registry import entries

BASE = {"name": "spaces", "data": {"source": "world"}, "optim": {"steps": 60, "lr": 5e-4}}
TRAINED = [name for name in chosen("trained") if name != "none"]


def plan_of(*methods: str) -> Plan:
    return read_plan([BASE], [], methods=methods, trials=3, seeds=[0], suite="none", ledger=Path("unused"))


def test_what_is_tuned_is_what_is_trained() -> None:
    assert {name for name in entries("method") if tunable(name)} == set(TRAINED)


@pytest.mark.parametrize("method", TRAINED)
def test_every_corner_of_the_space_makes_a_run(method: str) -> None:
    plan = plan_of(method)
    spec = load_sweep(plan.sweep(method))  # builds a configuration for both ends of every range and every choice
    assert {p.key for p in spec.search} == set(plan.space(method))
    for key in plan.space(method):
        assert key.startswith("method.") or key in COMMON
    trained = bool(entries("method")[method].facts.get("streams", True))
    assert (set(COMMON) <= set(plan.space(method))) == trained
    assert 2 <= len(spec.search) <= 5
    config = spec.config({p.key: p.points()[-1] for p in spec.search if not p.when})
    assert config.method.name == method
    assert config.data.partition == "validation"
    assert (config.evaluation.gold, config.tracking.enabled) == (None, False)


@pytest.mark.parametrize("method", TRAINED)
def test_the_first_trial_is_the_default(method: str) -> None:
    plan = plan_of(method)
    run = plan.validation(method)
    assert set(default_point(run, plan.space(method))) == set(plan.space(method))
    assert len(load_sweep(plan.sweep(method)).first) == 1


def test_learning_rate_and_steps_follow_the_configuration() -> None:
    plan = plan_of("npo")
    small, large = plan.run("npo", 0, {"optim.lr": 1e-5, "optim.steps": 9}), plan.run("npo", 0, {})
    assert method_space(small)["optim.lr"] == {"low": 2e-6, "high": 5e-5, "log": True}
    assert method_space(small)["optim.steps"] == {"low": 3, "high": 9, "int": True}
    assert method_space(large)["optim.steps"]["high"] == 60
    assert method_space(plan.run("npo", 0, {"optim.steps": 2}))["optim.steps"]["low"] == 1
    assert "optim.steps" not in method_space(plan.run("npo", 0, {"optim.steps": 1}))
    assert method_space(large, {"method.beta": {"choices": [0.1]}})["method.beta"] == {"choices": [0.1]}
