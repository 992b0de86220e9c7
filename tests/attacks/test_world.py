"""Both directions, on the embedded world: against a model that has the facts an attack finds them; where nobody ever had them, nothing.

The settings are those of experiments/world_attacks, so that the study's attacks are the ones that are proven here; but for the suffix
search, which has the quick suite's three tokens: the study's five break so small a model in some worlds, and find a quarter of the facts
that it tells when asked plainly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CACHE
from unlearn.attack import attack
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.registry import entries
from unlearn.run import execute

pytestmark = pytest.mark.slow

SETTINGS = Path(__file__).parents[2] / "experiments" / "world_attacks" / "attacks.yaml"
NAMES = [name for name in entries("attack") if name != "strip"]
FOUND = 0.5
"""Least excess against the original model."""
NOTHING = 0.15
"""Most excess against the gold model, unless its interval holds zero."""


@pytest.fixture(scope="module")
def results(world: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every attack on the original model and, beside it, on the gold model."""
    run = {
        "name": "none",
        "out": str(tmp_path_factory.mktemp("runs")),
        "cache": str(CACHE),
        "data": {"source": "world"},
        "method": {"name": "none"},
        "latents": {"select": "all"},
        "evaluation": {"every": 0, "null_draws": 2, "permutations": 9, "bootstrap": 200},
        "trainer": {"accelerator": "cpu", "devices": "1", "progress_bar": False},
        "tracking": {"enabled": False},
    }
    path = execute(load_config(run, [], plugin_schemas()))
    done = attack(str(path), ",".join(NAMES), [SETTINGS], ["evaluation.gold=source", "attack.search.length=3"])
    assert not done.failed
    assert not done.skipped
    return dict(done.results)


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_of_the_original_model_are_found(name: str, results: dict[str, Any]) -> None:
    assert results[f"attack/{name}_excess"] > FOUND
    assert results[f"attack/{name}_excess/ci_low"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found_in_the_gold_model(name: str, results: dict[str, Any]) -> None:
    low = results[f"attack/{name}_gold_excess/ci_low"]
    assert results[f"attack/{name}_gold_excess"] <= NOTHING or low <= 0


@pytest.mark.parametrize("name", NAMES)
def test_unknown_people_stay_at_chance(name: str, results: dict[str, Any]) -> None:
    """Of the original model: made-up facts are no better than a guess at the best of many settings."""
    assert results[f"attack/{name}_control"] <= 0.4
    assert results[f"attack/{name}_accuracy" if f"attack/{name}_accuracy" in results else f"attack/{name}_recovery"] > FOUND
