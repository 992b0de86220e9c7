"""Whole runs on a GPU: beside the CPU's, in bfloat16, interrupted and resumed on either."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.gpu.device import ACCELERATOR, DEVICE, note
from tests.mini import make_mini
from tests.sharded import Case, differs_by, losses
from unlearn.errors import Preempted
from unlearn.models.decoder import device_of
from unlearn.module import UnlearningModule
from unlearn.run import execute, resume
from unlearn.tracking.rundir import RunDirectory

GUIDED = Case("guided", {"name": "sae_guided", "objective": "distribution", "retain_noise": 0.5}, ("trainer.checkpoint_every=0",))
FULL = Case("full", {"name": "grad_diff"}, ("model.trainable.mode=full",))
ERASE = Case("erase", {"name": "sae_erase"}, ("model.trainable.mode=lora", "model.lora.rank=2"))
RUNS = {case.name: case for case in (GUIDED, FULL, ERASE)}
GPU, CPU = f"trainer.accelerator={ACCELERATOR}", "trainer.accelerator=cpu"
ON_CPU, ON_GPU = "accelerator: cpu", f"accelerator: {ACCELERATOR}"


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_mini(tmp_path_factory.mktemp("mini"), tracked=False)


def made(mini: dict[str, Any], case: Case, folder: Path, *words: str) -> Path:
    """The run, in a folder of its own, with a cache of its own: nothing comes from a run on another device."""
    return execute(case.config({**mini, "out": str(folder), "cache": str(folder / "cache")}, *words))


def cut(mini: dict[str, Any], case: Case, folder: Path, *words: str) -> Path:
    """The run, told to stop in its third step of four."""
    step, seen = UnlearningModule.training_step, []

    def told(self: UnlearningModule, batch: Any, index: int) -> Any:
        seen.append(device_of(self.lm).type)
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    with mock.patch.object(UnlearningModule, "training_step", told), pytest.raises(Preempted):
        made(mini, case, folder, *words)
    assert set(seen) == {DEVICE if GPU in words else "cpu"}
    return folder / case.name


def moved(path: Path, before: str, after: str) -> None:
    """Let the run in ``path`` go on elsewhere."""
    text = (path / "config.yaml").read_text(encoding="utf-8")
    assert text.count(before) == 1
    (path / "config.yaml").write_text(text.replace(before, after), encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_results_of_one_on_the_cpu(mini: dict[str, Any], name: str, tmp_path: Path) -> None:
    found = differs_by(made(mini, RUNS[name], tmp_path / "cpu", CPU), made(mini, RUNS[name], tmp_path / "gpu", GPU))
    note("run", case=name, **found)
    assert found["loss"] <= 1e-4
    assert found["results"] <= 5e-3
    assert found["moved"] > 1e-4
    costs = json.loads((tmp_path / "gpu" / name / "results.json").read_text())
    assert costs["cost/peak_memory_mb"] > 0


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_and_resumed_ends_as_if_it_had_gone_on(mini: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Twice on the GPU, uninterrupted and not: the weights are the same bit for bit."""
    whole, path = made(mini, RUNS[name], tmp_path / "whole", GPU), cut(mini, RUNS[name], tmp_path / "cut", GPU)
    assert resume(path) == path
    found = differs_by(whole, path)
    note("resume", case=name, **found)
    weights = [RunDirectory.open(run).read_weights() for run in (whole, path)]
    assert losses(whole) == losses(path)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("goes", ["from GPU to CPU", "from CPU to GPU"])
def test_a_checkpoint_goes_on_on_the_other_device(mini: dict[str, Any], name: str, goes: str, tmp_path: Path) -> None:
    first, then, word = (ON_GPU, ON_CPU, GPU) if goes == "from GPU to CPU" else (ON_CPU, ON_GPU, CPU)
    whole, path = made(mini, RUNS[name], tmp_path / "whole", GPU), cut(mini, RUNS[name], tmp_path / "cut", word)
    moved(path, first, then)
    assert resume(path) == path
    found = differs_by(whole, path)
    note("resume elsewhere", case=f"{name} {goes}", **found)
    assert len(losses(path)) == 4
    assert found["loss"] <= 1e-4
    assert found["results"] <= 5e-3


@pytest.mark.parametrize("name", ["full", "erase"])
@pytest.mark.parametrize("word", ["trainer.precision=bf16-mixed", "model.dtype=bfloat16", "trainer.precision=bf16-true"])
def test_bfloat16_trains_near_fp32(mini: dict[str, Any], name: str, word: str, tmp_path: Path) -> None:
    plain, half = made(mini, RUNS[name], tmp_path / "plain", GPU), made(mini, RUNS[name], tmp_path / "half", GPU, word)
    pairs = list(zip(losses(plain), losses(half), strict=True))
    note("bfloat16", case=f"{name} {word}", first=abs(pairs[0][0] - pairs[0][1]), last=abs(pairs[-1][0] - pairs[-1][1]), loss=pairs[-1][0])
    assert all(abs(a - b) <= 0.2 * max(1.0, abs(a)) for a, b in pairs)
    assert any(a != b for a, b in pairs)
