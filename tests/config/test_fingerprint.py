import dataclasses

import pytest

from unlearn.config import fingerprint as module
from unlearn.config.fingerprint import ABSENT, diff, fingerprint, flatten, plain, to_yaml
from unlearn.config.load import load_config
from unlearn.config.schema import MethodConfig, RunConfig, SourceConfig

SCHEMAS = {"data": lambda name: SourceConfig, "method": lambda name: MethodConfig}
BASE = {"name": "a", "data": {"source": "s"}, "method": {"name": "m"}}


def make(*overrides):
    return load_config(BASE, overrides, SCHEMAS)


def test_a_fingerprint_is_short_hex_and_repeats():
    value = fingerprint(make())
    assert len(value) == 16
    assert int(value, 16) >= 0
    assert value == fingerprint(make())


@pytest.mark.parametrize(
    "override",
    [
        "name=b",
        "out=x",
        "cache=x",
        "tracking.enabled=false",
        "tracking.uri=x",
        "trainer.devices=2",
        "trainer.progress_bar=false",
        "trainer.threads=1",
    ],
)
def test_where_a_run_is_made_does_not_matter(override):
    assert fingerprint(make(override)) == fingerprint(make())


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "method.name=n",
        "optim.lr=1",
        "optim.betas=[0.9,0.9]",
        "trainer.precision=bf16-mixed",
        "trainer.accumulate=2",
        "evaluation.every=0",
        "data.batch.known=1",
    ],
)
def test_what_changes_a_result_does(override):
    assert fingerprint(make(override)) != fingerprint(make())


def test_the_version_matters(monkeypatch):
    before = fingerprint(make())
    monkeypatch.setattr(module, "__version__", "99")
    assert fingerprint(make()) != before


def test_every_ignored_key_exists():
    keys = {*flatten(make()), *(f.name for f in dataclasses.fields(RunConfig))}
    assert keys >= module.NO_EFFECT


def test_flat_keys_are_scalars():
    flat = flatten(make())
    assert flat["optim.betas"] == "[0.9, 0.999]"
    assert flat["sae.layer"] is None
    assert all(value is None or isinstance(value, (str, int, float, bool)) for value in flat.values())
    assert flatten({"a": {}, "b": {"c": (1, 2)}}) == {"a": "{}", "b.c": "[1, 2]"}


def test_what_differs():
    assert diff(make(), make("seed=2", "sae.layer=1", "name=b")) == [("name", "a", "b"), ("seed", 0, 2), ("sae.layer", None, 1)]
    assert diff({"a": 1}, {"b": None}) == [("a", 1, ABSENT), ("b", ABSENT, None)]


def test_a_recorded_config_does_not_differ_from_itself():
    import yaml

    assert diff(make("optim.lr=1e-7"), yaml.safe_load(to_yaml(make("optim.lr=1e-7")))) == []


def test_plain_values():
    from enum import Enum
    from pathlib import Path

    class Colour(Enum):
        RED = 1

    assert plain({"a": (1, Path("/x")), "b": Colour.RED}) == {"a": [1, "/x"], "b": "RED"}


def test_keys_that_came_later_do_not_change_the_fingerprint_of_runs_made_before():
    flat = flatten(make())
    assert {key: flat.get(key, value) for key, value in module.ADDED.items()} == module.ADDED, "what is not counted must be a default"
    assert not module.ADDED.keys() & module.NO_EFFECT
    older = {key: value for key, value in flat.items() if key not in module.ADDED}
    assert fingerprint(older) == fingerprint(make()) != fingerprint({**flat, "new.key": 1})


@pytest.mark.parametrize("override", ["model.quantise=nf4", "model.chat.system=Hi", "optim.name=paged_adamw"])
def test_they_count_when_they_are_set(override):
    assert fingerprint(make(override)) != fingerprint(make())
