"""A finished run comes back as the model it ended with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mini import make_mini
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import RunError
from unlearn.registry import entries
from unlearn.restore import restore
from unlearn.run import execute
from unlearn.tracking.files import read_json

KINDS = ["sae_guided", *(name for name, entry in entries("method").items() if entry.facts.get("intervention"))]

SETTINGS = {
    "sae_clamp": {"retain_threshold": 1.0, "multiplier": 100.0},
    "conditional_clamp": {"retain_threshold": 1.0},
}
"""What makes an intervention act on the random model, whose latents know nothing of names."""


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_mini(tmp_path_factory.mktemp("mini"))


def run_of(mini: dict[str, Any], method: str) -> Path:
    section = {"name": method, **SETTINGS.get(method, {})}
    return execute(load_config({**mini, "name": f"r_{method}", "method": section}, ["tracking.enabled=false"], plugin_schemas()))


def digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_the_restored_model_measures_as_the_run_did_and_leaves_its_folder_alone(mini: dict[str, Any], method: str) -> None:
    path = run_of(mini, method)
    before = digest(path)
    assembly = restore(path)
    measured = assembly.suite.measure(assembly.module.lm).results
    kept = read_json(path / "results.json")
    assert measured["forget/probability"] == pytest.approx(kept["forget/probability"], rel=1e-6)
    assert {key: value for key, value in measured.items() if kept[key] != pytest.approx(value, rel=1e-5, abs=1e-7)} == {}
    if method != "dsg":  # its gate opens on rows unlike the retain rows, and to a random model all rows are alike
        assert measured["forget/probability"] != pytest.approx(assembly.suite.base.results["forget/probability"], rel=1e-6)
    assert digest(path) == before


def test_only_a_finished_run_is_restored(mini: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be the folder of a run|must be a finished run|must be"):
        restore(tmp_path)


@pytest.mark.slow
def test_weights_of_another_model_are_refused(mini: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    path = run_of(mini, "gradient_ascent")
    save_file({"lm.other": torch.zeros(2)}, path / "weights.safetensors")
    with pytest.raises(RunError, match=r"must hold the \d+ trained weights of its run; found 1 that differ at lm\."):
        restore(path)
    (path / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"weights\.safetensors must hold the run's final weights; found a damaged file"):
        restore(path)
