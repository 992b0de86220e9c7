"""The measuring callbacks through a real Trainer."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from tests.toys import LAYER, toy
from unlearn.callbacks.collapse import CollapseMonitor
from unlearn.callbacks.cost import Cost, PeakMemory
from unlearn.callbacks.evaluation import Evaluation, sample_rows
from unlearn.callbacks.latent import LatentDistance
from unlearn.config.schema import OptimConfig, TrainerConfig
from unlearn.launch import make_trainer, trainer_settings
from unlearn.models.decoder import blocks_of
from unlearn.models.forward import gpus_at_work
from unlearn.module import UnlearningModule
from unlearn.tracking.logger import RunDirLogger
from unlearn.tracking.rundir import RunDirectory


def test_a_run_leaves_measurements_results_samples_and_a_picture(tmp_path: Path) -> None:
    made = toy(tmp_path)
    suite, run = made.suite(samples=4), RunDirectory.create(tmp_path, "run")
    suite.measure_base(made.lm)
    latent, cost = LatentDistance(suite.meter, 2, run), Cost()
    latent.remember(made.lm)
    for block in blocks_of(made.lm)[: LAYER + 1]:
        block.requires_grad_(True)
    optim = OptimConfig(steps=5, lr=1e-3)
    callbacks: list[pl.Callback] = [cost, latent, CollapseMonitor(suite, 2), Evaluation(suite, run, 4)]
    trainer_config = TrainerConfig(accelerator="cpu", devices="1", progress_bar=False)
    trainer = make_trainer(trainer_config, optim, callbacks, [RunDirLogger(run)], trainer_settings(trainer_config, {}))
    trainer.fit(UnlearningModule(made.lm, made.method("sae_guided"), optim), datamodule=made.datamodule)

    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    for key in ("latent/c2st_auc", "latent/p_unknown", "latent/distance_to_known", "generic/perplexity", "collapse/hidden_norm_drift"):
        assert [row["step"] for row in rows if row["key"] == key] == [0, 2, 4, 5]
    results = json.loads(run.results_path.read_text())
    for key in (
        "forget/accuracy",
        "forget/accuracy_paraphrased",
        "retain/accuracy_unseen",
        "unknown/refusal_rate",
        "latent/mmd_p_value",
        "collapse/reason",
    ):
        assert key in results
    last = [row["value"] for row in rows if row["key"] == "latent/distance_to_known"][-1]
    assert abs(results["latent/distance_to_known"] - last) < 1e-5
    samples = [json.loads(line) for line in run.samples_path.read_text().splitlines()]
    assert len(samples) == 4
    assert [s["set"] for s in samples].count("forget_paraphrased") == 2
    assert {"prompt", "reference", "before", "after"} <= set(samples[0])
    picture = np.load(run.activations_path)
    assert picture["target_before_KD"].shape == picture["target_after_KD"].shape == (4, 32)
    assert not np.allclose(picture["target_before_KD"], picture["target_after_KD"])
    names = (
        "step_seconds",
        "step_cpu_seconds",
        "train_seconds",
        "train_cpu_seconds",
        "tokens_per_second",
        "peak_memory_mb",
        "training_memory_mb",
    )
    assert set(cost.results()) == {f"cost/{name}" for name in names}
    assert cost.results()["cost/peak_memory_mb"] > 50
    assert len(cost.seconds) == 5


def test_measuring_during_training_does_not_change_training(tmp_path: Path) -> None:
    def train(folder: Path, measure: bool) -> list[torch.Tensor]:
        made = toy(folder)
        suite = made.suite()
        suite.measure_base(made.lm)
        run = RunDirectory.create(folder, "run")
        latent = LatentDistance(suite.meter, 1, run)
        latent.remember(made.lm)
        for block in blocks_of(made.lm)[: LAYER + 1]:
            block.requires_grad_(True)
        optim, config = OptimConfig(steps=4, lr=1e-3), TrainerConfig(accelerator="cpu", devices="1", progress_bar=False)
        callbacks: list[pl.Callback] = [latent, CollapseMonitor(suite, 1)] if measure else []
        trainer = make_trainer(config, optim, callbacks, [], trainer_settings(config, {}))
        trainer.fit(UnlearningModule(made.lm, made.method("sae_guided"), optim), datamodule=made.datamodule)
        return [p.detach().clone() for p in made.lm.parameters()]

    pairs = zip(train(tmp_path / "a", True), train(tmp_path / "b", False), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_sample_prompts_are_fixed_and_half_from_the_target() -> None:
    made = {"forget_paraphrased": list(range(50)), "retain": list(range(30)), "unknown": list(range(9)), "generic": [1]}
    picked = sample_rows(made, 8)  # type: ignore[arg-type]
    assert picked == sample_rows(made, 8)  # type: ignore[arg-type]
    assert [name for name, _ in picked] == ["forget_paraphrased"] * 4 + ["retain"] * 2 + ["unknown"] * 2
    assert [i for name, i in picked if name == "forget_paraphrased"] == [0, 16, 33, 49]


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_measures_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU, which such a run does not use, is neither asked nor started."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: pytest.fail("the GPU was asked"))
    memory = PeakMemory(cuda=False)
    memory.start()
    memory.wait()
    assert memory.stop() > 1.0
    assert PeakMemory().cuda
    assert list(gpus_at_work()) == []
