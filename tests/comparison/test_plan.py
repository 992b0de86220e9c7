"""What a comparison compares, from files and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unlearn.cli.comparison import _tests, how_many
from unlearn.comparison.plan import read_plan
from unlearn.config.attacks import attack_settings
from unlearn.errors import ConfigError
from unlearn.tracking.rundir import RunDirectory

TREE: dict[str, Any] = {
    "name": "fair",
    "data": {"source": "world"},
    "optim": {"steps": 30, "lr": 1e-3},
    "method": {"name": "dpo"},
    "attack": {"relearn": {"splits": 1}},
    "spaces": {"npo": {"method.beta": {"choices": [0.1, 0.2]}}},
}


def plan_of(tree: dict[str, Any] | None = None, **options: Any) -> Any:
    given = {"methods": ["none", "npo", "dsg"], "trials": 4, "seeds": [0, 1], "suite": "relearn", **options}
    return read_plan([tree or TREE], given.pop("overrides", []), **given)


def test_runs_of_test_and_tuning() -> None:
    plan = plan_of(gold=True, overrides=["optim.lr=0.002"])
    assert plan.methods == ("npo", "gold", "none", "dsg")  # the reference first, then the rows that stand for nothing and everything
    assert plan.ledger == Path("runs/fair/results")
    test = plan.run("npo", 3, {"method.beta": 0.2, "optim.steps": 11})
    assert (test.name, test.seed, test.method.beta, test.optim.steps, test.optim.lr) == ("fair/npo/seed3", 3, 0.2, 11, 0.002)  # type: ignore[attr-defined]
    assert (test.data.partition, test.evaluation.gold) == ("test", "source")
    tuning = plan.validation("npo")
    assert (tuning.data.partition, tuning.evaluation.gold, tuning.evaluation.permutations) == ("validation", None, 1)
    sweep = plan.sweep("npo")
    assert sweep["search"]["method.beta"] == {"choices": [0.1, 0.2]}
    assert sweep["search"]["optim.lr"] == {"low": 0.0004, "high": 0.01, "log": True}
    assert sweep["trials"] == 4
    assert [plan.tuned(name) for name in plan.methods] == [True, False, False, False]
    assert attack_settings("relearn", plan.attack)["relearn"].splits == 1


def test_the_runs_of_every_method_are_found_those_of_the_gold_model_too(tmp_path: Path) -> None:
    plan = plan_of({**TREE, "out": str(tmp_path)}, gold=True)
    assert "gold" in plan.methods
    for method in plan.methods:
        RunDirectory.create(str(tmp_path), f"fair/{method}/seed1").write_config("name: made\n")
        assert _tests(plan, method) == [tmp_path / "fair" / method / "seed1"]


def test_what_cannot_be_compared_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(trials=0, seeds=[], suite="relern", overrides=["trainer.devices=2"])
    text = "\n".join(caught.value.problems)
    for expected in (
        "--trials must be >= 1; found 0.",
        "--seeds must name a seed",
        "found 'relern'. Did you mean 'relearn'?",
        "trainer.devices must be 1 in a comparison",
    ):
        assert expected in text
    with pytest.raises(ConfigError, match=r"--reference must be one of the methods .*found 'rmu'"):
        plan_of(reference="rmu")
    with pytest.raises(ConfigError, match="found a study"):
        plan_of({"study": "x", "runs": {}})
    with pytest.raises(ConfigError, match=r"spaces.npp must be a method; found 'npp'. Did you mean 'npo'"):
        plan_of({**TREE, "spaces": {"npp": {}}})
    with pytest.raises(ConfigError, match=r"spaces.npo must map keys to ranges"):
        plan_of({**TREE, "spaces": {"npo": {"method.beta": 3}}})
    with pytest.raises(ConfigError, match="betta"):
        plan_of({**TREE, "spaces": {"npo": {"method.betta": {"choices": [0.1]}}}})


def test_a_number_of_seeds_or_seeds() -> None:
    assert (how_many("5"), how_many("1,4"), how_many("2-3")) == ([0, 1, 2, 3, 4], [1, 4], [2, 3])
    with pytest.raises(ConfigError, match="--seeds must be a number of seeds"):
        how_many("0")
