"""What every attack of the registry must do, on toy models that know their facts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.attacks.conftest import context_of
from tests.toys import Toy, toy
from unlearn.attack import weights_hash
from unlearn.attacks.base import Attack, AttackContext, Outcome
from unlearn.config.attacks import quick_settings
from unlearn.config.document import docstrings
from unlearn.errors import ConfigError
from unlearn.registry import entries
from unlearn.types import Row

NAMES = list(entries("attack"))
CHEAP = {
    "relearn": {"lrs": [1e-3], "steps": [1, 2], "splits": 1},
    "relearn_half": {"lrs": [1e-3], "steps": [1], "splits": 1},
    "relearn_benign": {"lrs": [1e-3], "steps": [1]},
    "relearn_lora": {"lrs": [1e-3], "steps": [1], "splits": 1},
    "relearn_statements": {"lrs": [1e-3], "steps": [1], "splits": 1},
    "sample": {"draws": 1},
}
"""Smaller settings than the quick suite's, for attacks that train; one draw, since the toy's answers are five and many draws hit any."""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> AttackContext:
    made: Toy = toy(tmp_path_factory.mktemp("toy"), taught=True)
    context = context_of(with_attributes(made))
    both = {"target": context.target, "control": context.control}
    sides = {side: type(facts)(facts.train, facts.train, facts.train) for side, facts in both.items()}
    return replace(context, **sides)


def with_attributes(made: Toy) -> Toy:
    """The toy's rows with the question as their attribute, which probes need."""

    def tagged(sets: Mapping[str, Sequence[Row]]) -> dict[str, tuple[Row, ...]]:
        return {name: tuple(replace(row, attribute=row.template) for row in rows) for name, rows in sets.items()}

    data = replace(made.data, streams=tagged(made.data.streams), evaluation=tagged(made.data.evaluation))
    return replace(made, data=data)


def attack_of(name: str) -> Attack:
    cls = entries("attack")[name].load()
    return cls(cls.Config(**{**quick_settings().get(name, {}), **CHEAP.get(name, {})}))


@pytest.fixture(scope="module")
def outcomes(taught: AttackContext) -> dict[str, Outcome]:
    """Every attack, made once."""
    return {name: attack_of(name).run(taught) for name in NAMES}


def test_the_issue_is_covered() -> None:
    wanted = {"relearn", "relearn_half", "relearn_benign", "relearn_lora", "quantise", "probe", "lens", "steer", "patch", "prompt"}
    assert wanted | {"relearn_statements", "sample", "search", "strip"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    entry = entries("attack")[name]
    cls = entry.load()
    assert cls.name == name
    assert cls.summary
    assert cls.summary[0].islower()
    assert not cls.summary.endswith(".")
    assert cls.paper.startswith("https://")
    assert cls.measure in ("accuracy", "recovery")
    assert cls.Config.__dataclass_params__.frozen
    own = [field.name for field in dataclasses.fields(cls.Config)]
    documented = {n for base in cls.Config.__mro__ if dataclasses.is_dataclass(base) for n in docstrings(base)}
    assert set(own) <= documented
    assert inspect.getdoc(cls)
    assert inspect.getdoc(inspect.getmodule(cls))
    cls.Config(**(cls.quick or {}))


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_are_treated_alike(name: str, outcomes: dict[str, Outcome], taught: AttackContext) -> None:
    found = outcomes[name]
    n, m = len(taught.target.test), len(taught.control.test)
    assert len(found.cells) == len(set(found.cells))
    assert found.target.shape == (len(found.cells), n)
    assert found.control.shape == (len(found.cells), m)
    assert found.target_groups == tuple(row.entity for row in taught.target.test)
    assert found.control_groups == tuple(row.entity for row in taught.control.test)
    for side in (found.target, found.control):
        values = side[~np.isnan(side)]
        assert len(values)
        assert values.min() >= 0
        assert values.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_knows_the_facts_gives_them_away(name: str, outcomes: dict[str, Outcome]) -> None:
    """On the toy an attack need not be perfect, only better than on names that have no facts."""
    found = outcomes[name].contrast(200, 0)
    assert found.target > found.control, found


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_its_own(name: str, outcomes: dict[str, Outcome]) -> None:
    results = outcomes[name].results(f"attack/{name}", entries("attack")[name].load().measure, 50, 0)
    assert {f"attack/{name}_control", f"attack/{name}_excess"} <= results.keys()
    extras = {"sample": "attack/leak_at_"}
    assert all(key.startswith((f"attack/{name}", extras.get(name, f"attack/{name}"))) for key in results)
    assert all(isinstance(value, float) for value in results.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_outcome_survives_its_file(name: str, outcomes: dict[str, Outcome]) -> None:
    found = outcomes[name]
    back = Outcome.of_record(found.record())
    np.testing.assert_array_equal(back.target, found.target)
    assert back.results("k", "accuracy", 20, 1) == found.results("k", "accuracy", 20, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_and_the_random_state_stay_and_the_seed_decides(name: str, taught: AttackContext, outcomes: dict[str, Outcome]) -> None:
    before, state, training = weights_hash(taught.lm), torch.get_rng_state(), taught.lm.training
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in taught.lm.modules())
    torch.manual_seed(1234)
    again = attack_of(name).run(taught)
    torch.set_rng_state(state)
    assert again.record() == outcomes[name].record()
    assert weights_hash(taught.lm) == before
    assert taught.lm.training == training
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in taught.lm.modules()) == hooks
    assert not any(p.requires_grad for p in taught.lm.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_it_tells_how_far_it_is(name: str, taught: AttackContext) -> None:
    shares: list[float] = []
    attack_of(name).run(replace(taught, tick=shares.append))
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares)


def bad_values() -> list[tuple[str, str, object]]:
    cases: list[tuple[str, str, object]] = []
    for name, entry in entries("attack").items():
        for field in dataclasses.fields(entry.load().Config):
            value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
            if isinstance(value, bool) or value is None:
                continue
            wrong: list[object] = []
            if isinstance(value, int):
                wrong = [-(10**9)]
            elif isinstance(value, float):
                wrong = [float("nan"), -1e9]
            elif isinstance(value, str):
                wrong = ["no such word"]
            elif isinstance(value, list) and value and isinstance(value[0], int | float):
                wrong = [[-(10**9)]]
            elif isinstance(value, list) and value:
                wrong = [["no such word"]]
            cases += [(name, field.name, item) for item in wrong]
    return cases


@pytest.mark.parametrize(("name", "key", "value"), bad_values(), ids=str)
def test_bad_settings_are_refused_by_name(name: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{name}\.{key}"):
        entries("attack")[name].load().Config(**{key: value})
