"""Sweep files: what they mean, and what is said about bad ones."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn.config.sweep import SweepSpec, is_sweep, load_sweep
from unlearn.errors import ConfigError

SEARCH: dict[str, Any] = {
    "method.name": {"choices": ["npo", "rmu"]},
    "method.beta": {"low": 0.01, "high": 1, "log": True, "when": {"method.name": "npo"}},
    "optim.steps": {"low": 10, "high": 100},
}


def read(*overrides: str, **keys: Any) -> SweepSpec:
    given = {"sweep": "s", "base": {"data": {"source": "world"}}, "search": SEARCH, "objectives": {"forget/accuracy": "minimize"}, **keys}
    return load_sweep({key: value for key, value in given.items() if value is not None}, overrides)


def problems(*overrides: str, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*overrides, **keys)
    return list(caught.value.problems)


def test_a_file_is_read_with_what_it_is_based_on(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: ignored\ndata: {source: world}\noptim: {lr: 1e-4, steps: 7}\n")
    path = tmp_path / "sweep.yaml"
    tree = {"sweep": "s", "base": ["run.yaml", {"optim": {"steps": 9}}], "search": SEARCH, "objectives": {"a/b": "maximise"}}
    path.write_text(yaml.safe_dump({**tree, "search": {"method": {"name": {"choices": ["npo"]}, "beta": {"value": 0.5}}}}))
    assert is_sweep(path)
    assert not is_sweep(tmp_path / "run.yaml")
    spec = load_sweep(path, ["trials=3", "sampler=random", "optim.clip=2", "base.seed=4"])
    config = spec.config({"method.name": "npo", "method.beta": 0.5}, 12)
    assert (config.name, config.optim.lr, config.optim.steps, config.optim.clip, config.seed) == ("s/trial_012", 1e-4, 9, 2.0, 4)
    assert (config.method.name, config.method.beta) == ("npo", 0.5)  # type: ignore[attr-defined]
    assert (spec.trials, spec.settings.sampler.name, spec.objectives[0].direction) == (3, "random", "maximize")


def test_conditions_come_after_what_they_speak_of_and_decide_who_takes_part() -> None:
    spec = read(search={"method.beta": SEARCH["method.beta"], "method.name": SEARCH["method.name"]})
    assert [p.key for p in spec.search] == ["method.name", "method.beta"]
    beta = spec.search[1]
    assert [beta.active(v) for v in ({"method.name": "npo"}, {"method.name": "rmu"}, {})] == [True, False, False]


def test_whole_numbers_are_known_by_the_key() -> None:
    found = {p.key: p.integer for p in read(search={**SEARCH, "optim.lr": {"low": 1, "high": 2}}).search}
    assert found == {"method.name": False, "method.beta": False, "optim.steps": True, "optim.lr": False}


def test_a_key_may_have_a_range_for_each_condition() -> None:
    search = {
        "method.name": {"choices": ["npo", "rmu"]},
        "optim.lr": [
            {"low": 1e-5, "high": 1e-4, "when": {"method.name": "npo"}},
            {"low": 1e-3, "high": 1e-2, "when": {"method.name": "rmu"}},
        ],
    }
    spec = read(search=search)
    assert [p.name for p in spec.search] == ["method.name", "optim.lr [npo]", "optim.lr [rmu]"]
    assert spec.config({"method.name": "rmu", "optim.lr": 5e-3}).optim.lr == 5e-3


def test_an_override_of_a_run_takes_the_place_of_what_is_searched() -> None:
    spec = read("method.name=rmu", "optim.steps=5")
    assert spec.search == ()
    assert (spec.example().method.name, spec.example().optim.steps) == ("rmu", 5)
    kept = read("method.name=npo")
    assert [(p.key, p.when) for p in kept.search] == [("optim.steps", {}), ("method.beta", {})]


def test_a_grid_has_every_combination_that_conditions_allow() -> None:
    search = {**SEARCH, "method.beta": {"choices": [0.1, 0.2, 0.4], "when": {"method.name": "npo"}}}
    spec = read(search={**search, "optim.steps": {"low": 10, "high": 35, "step": 10}}, sampler="grid", trials=None)
    points = [tuple(sorted(point.items())) for point in spec.grid()]
    npo = [(("method.beta", b), ("method.name", "npo"), ("optim.steps", s)) for b, s in product((0.1, 0.2, 0.4), (10, 20, 30))]
    assert sorted(points) == sorted([*npo, *((("method.name", "rmu"), ("optim.steps", s)) for s in (10, 20, 30))])
    assert (spec.trials, read(search=search, sampler="tpe").trials) == (12, 20)


def test_lists_can_be_chosen_between() -> None:
    spec = read(search={"optim.betas": {"choices": [[0.9, 0.99], [0.8, 0.95]]}, "method.name": {"value": "npo"}})
    betas = spec.search[0]
    assert betas.labels == ("[0.9, 0.99]", "[0.8, 0.95]")
    assert spec.config({"optim.betas": betas.meant("[0.8, 0.95]"), "method.name": "npo"}).optim.betas == [0.8, 0.95]


def test_all_problems_are_told_together_with_their_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "sweep": "bad",
                "serch": 1,
                "optim": {"lr": 1},
                "base": {"data": {"source": "world"}},
                "search": {
                    "optim.lr": {"low": 1, "high": 0},
                    "optim.clip": {"lo": 1, "high": 2},
                    "optim.steps": {"low": "few", "high": 2},
                    "method.nme": {"choices": ["npo"]},
                    "method.beta": {"low": 0, "high": 1, "log": True, "when": {"method.name": "npo"}},
                    "optim.schedule": ["constant"],
                },
                "objectives": {"forget/accuracy": "minimze", "retain/accuracy": {"near": "half"}},
                "constraints": {"retain/accuracy": 0.9},
                "sampler": {"name": "tpee"},
                "trials": 0,
            }
        )
    )
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    said = [p.removeprefix(f"{path}: ") for p in caught.value.problems if p.startswith(f"{path}: ")]
    assert len(said) == len(caught.value.problems)
    expected = [
        "serch is not a known key of a sweep. Did you mean 'search'?",
        "optim is not a known key of a sweep. Settings of the runs belong under 'base'.",
        "sampler.name must be one of tpe, nsga2, random, grid; found 'tpee'. Did you mean 'tpe'?",
        "trials must be >= 1; found 0.",
        "search.optim.lr must have low < high; found 1 and 0.",
        "search.optim.clip.lo is not a known key of a range. Did you mean 'low'?",
        "search.optim.steps.low must be a number; found 'few'.",
        "search.method.beta must have low > 0 on a logarithmic scale; found 0.",
        "search.optim.schedule must be a range ({low, high}) or choices ({choices: [...]}); found 'constant'.",
        "objectives.forget/accuracy must be minimize, maximize or {near: NUMBER}; found 'minimze'. Did you mean 'minimize'?",
        "objectives.retain/accuracy must be minimize, maximize or {near: NUMBER}; found {'near': 'half'}.",
        "constraints.retain/accuracy must be bounds, such as {low: 0.95} or {low: 0, high: 1}; found 0.9.",
    ]
    assert sorted(said) == sorted(expected)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"search": {"method.name": {"value": "npo"}, "method.bta": {"choices": [1]}}},
            "search.method.bta is not a known key. Did you mean 'search.method.beta'?",
        ),
        ({"search": {**SEARCH, "optim.lr": {"low": -1, "high": 1}}}, "search.optim.lr must be > 0; found -1.0."),
        ({"search": {**SEARCH, "method.name": {"choices": ["npo", "rmuu"]}}}, "'rmuu'"),
        ({"search": {**SEARCH, "optim.schedule": {"choices": ["constant", "cosin"]}}}, "search.optim.schedule must be one of"),
        ({"search": {"optim.lr": {"low": 0.1, "high": 1}}}, "method.name must be set"),
        (
            {"search": {**SEARCH, "optim.lr": {"low": 0.1, "high": 1, "when": {"method.nam": "npo"}}}},
            "when.method.nam must be a searched key with choices. Did you mean 'method.name'?",
        ),
        (
            {"search": {**SEARCH, "optim.lr": {"low": 0.1, "high": 1, "when": {"method.name": "npoo"}}}},
            "must be one of npo, rmu; found 'npoo'. Did you mean 'npo'?",
        ),
        (
            {"search": {"seed": {"choices": [1], "when": {"optim.steps": 1}}, "optim.steps": {"choices": [1], "when": {"seed": 1}}}},
            "must have no conditions in a circle; found one among optim.steps, seed.",
        ),
        ({"search": {}}, "search must name at least one key"),
        ({"objectives": None}, "objectives must name at least one key of the results"),
        ({"sampler": "grid"}, "search.method.beta must have choices or a step for the sampler grid"),
        (
            {"pruner": "median", "objectives": {"forget/accuracy": "minimize", "retain/accuracy": "maximize"}},
            "pruner must be none with several objectives, which Optuna does not prune; found 'median' with 2.",
        ),
        (
            {"pruner": "median", "objectives": {"forget/rouge_l": "minimize"}},
            "pruner must be none with the objective 'forget/rouge_l', which is not measured during training",
        ),
        (
            {"pruner": "median", "base": {"data": {"source": "world"}, "evaluation": {"every": 0}}},
            "evaluation.every must be >= 1 with a pruner",
        ),
        ({"objectives": {"attack/relearn_recovery": "minimize"}}, "attacks must name the attack that measures 'attack/relearn_recovery'"),
        ({"attacks": ["relern"]}, "found 'relern'. Did you mean 'relearn'?"),
        (
            {"attacks": ["relearn"], "attack": {"relearn": {"step": [1]}}},
            "attack.relearn.step is not a known key. Did you mean 'attack.relearn.steps'?",
        ),
        ({"first": [{"optim.stps": 3}]}, "first[0] must name searched keys; found 'optim.stps'. Did you mean 'optim.steps'?"),
        ({"first": [{"optim.steps": 300}]}, "first[0].optim.steps must be in [10, 100], as under search; found 300."),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: there is no such file"),
        ({"base": {"study": "x", "runs": {}}}, "base must be one run; found a study of several"),
        ({"storage": "mysql://db/x"}, "storage must be one of journal, sqlite, postgresql; found 'mysql'."),
        ({"patience": 10}, "patience must be > heartbeat; found 10."),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_said(keys: dict[str, Any], sentence: str) -> None:
    assert any(sentence in problem for problem in problems(**keys))


def test_the_sweeps_that_come_along_can_be_made() -> None:
    for path in sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("*.yaml")):
        spec = load_sweep(path)
        assert spec.name == path.stem
        assert spec.example().out == "runs"
