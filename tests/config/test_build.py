from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from unlearn.config.build import SELECTORS, Reading, convert, expectation
from unlearn.config.checks import check
from unlearn.config.layers import Layer
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import MethodConfig, OptimConfig, RunConfig
from unlearn.errors import ConfigError


@pytest.mark.parametrize(
    ("hint", "value", "converted"),
    [
        (float, 1, 1.0),
        (float, "1e-3", 1e-3),
        (int, "3", 3),
        (bool, "yes", True),
        (str, 7, "7"),
        (int | None, None, None),
        (list[float], [1, "2"], [1.0, 2.0]),
        (tuple[int, ...], [1, 2], (1, 2)),
        (Path, "/x", Path("/x")),
        (list[OptimConfig], [{"lr": 2}], [OptimConfig(lr=2.0)]),
    ],
)
def test_convert(hint, value, converted):
    found = convert(hint, value)
    assert found == converted
    assert type(found) is type(converted)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, "high"),
        (float, True),
        (int, 1.5),
        (int, 2.0),
        (bool, "maybe"),
        (str, None),
        (str, [1]),
        (list[int], 3),
        (list[int], {"a": 1}),
    ],
)
def test_convert_refuses(hint, value):
    with pytest.raises(ValueError, match="."):
        convert(hint, value)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (float, "a number (float)"),
        (int | None, "a whole number (int) or null"),
        (list[str], "a list (list[str])"),
        (Literal["a", "b"], "one of a, b"),
        (Path, "Path"),
    ],
)
def test_types_in_words(hint, words):
    assert expectation(hint) == words


def test_any_dataclass_can_be_read():
    layers = [Layer({"lr": 1}, "a"), Layer({"lr": 2, "steps": 0}, "b")]
    reading = Reading(OptimConfig, layers, {})
    assert reading.build() == OptimConfig(lr=2.0, steps=0)
    assert reading.said["lr"].label == "b"


def test_a_wrong_value_does_not_hide_another_in_the_same_section():
    with pytest.raises(ConfigError) as error:
        Reading(OptimConfig, [Layer({"lr": "x", "steps": -1})], {}).build()
    assert len(error.value.problems) == 2


def test_without_schemas_the_plugin_sections_have_their_base_keys():
    config = Reading(RunConfig, [Layer({"name": "a", "data": {"source": "s"}, "method": {"name": "m"}})], {}).build()
    assert (config.data.source, config.method.name) == ("s", "m")


def test_selectors_name_mandatory_fields():
    with pytest.raises(ConfigError) as error:
        Reading(RunConfig, [Layer({"name": "a"})], {}).build()
    assert [problem.split(" ")[0] for problem in error.value.problems] == [
        f"{section}.{key}" for section, key in SELECTORS.items() if "." not in section
    ]


def test_configurations_do_not_share_their_lists():
    a, b = (Reading(OptimConfig, [], {}).build() for _ in range(2))
    assert a.betas == b.betas
    assert a.betas is not b.betas


@dataclass(frozen=True, kw_only=True)
class _Inside(MethodConfig):
    beta: float = 0.1

    def __post_init__(self) -> None:
        check(self.beta > 0, "method.beta", "> 0", self.beta)


@dataclass(frozen=True, kw_only=True)
class _Other(MethodConfig):
    gamma: float = 1.0


@dataclass(frozen=True, kw_only=True)
class _Around(MethodConfig):
    inner: MethodConfig = field(default_factory=lambda: _Inside(name="inside"))


def _method(name):
    return {"around": _Around, "inside": _Inside, "other": _Other}[name]


def nested(inner):
    tree = {"name": "a", "data": {"source": "s"}, "method": {"name": "around", **({"inner": inner} if inner else {})}}
    return Reading(RunConfig, [Layer(tree)], {"method": _method, "method.inner": _method}).build()


def test_a_plugin_inside_a_plugin_is_typed_by_its_name():
    assert nested({}).method.inner == _Inside(name="inside")
    assert nested({"beta": 0.5}).method.inner == _Inside(name="inside", beta=0.5)
    assert nested({"name": "other", "gamma": 2.0}).method.inner == _Other(name="other", gamma=2.0)


def test_problems_of_a_plugin_inside_a_plugin_name_its_own_keys():
    with pytest.raises(ConfigError, match=r"method\.inner\.beta must be > 0; found -1"):
        nested({"beta": -1})
    with pytest.raises(ConfigError, match=r"method\.inner\.beta is not a known key"):
        nested({"name": "other", "beta": 1.0})


def test_a_wrapper_does_not_go_into_a_wrapper():
    tree = {"name": "a", "data": {"source": "world"}, "method": {"name": "lat", "inner": {"name": "undo"}}}
    with pytest.raises(ConfigError) as error:
        load_config(tree, (), plugin_schemas())
    assert list(error.value.problems) == ["method.inner.name must be a method that is no wrapper itself; found 'undo'."]
