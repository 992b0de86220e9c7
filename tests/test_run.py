"""Whole runs on files: the way of a user, good input and bad."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.forks import Command
from tests.mini import LAYER, fitted_sae, lines, make_mini
from tests.tiny import tiny_llama
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import DataError, ModelError, RunError, UnlearnError
from unlearn.run import execute, resume
from unlearn.tracking.reader import read_run


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_mini(tmp_path_factory.mktemp("mini"))


def config_of(mini: dict[str, Any], *overrides: str, method: str | None = None) -> Any:
    return load_config({**mini, "method": {"name": method}} if method else mini, overrides, plugin_schemas())


def mlflow_run(mini: dict[str, Any], path: Path) -> Any:
    from mlflow import MlflowClient

    run_id = json.loads((path / "manifest.json").read_text())["mlflow_run_id"]
    return MlflowClient(mini["tracking"]["uri"]).get_run(run_id)


def test_a_run_from_files_to_results_and_mlflow(mini: dict[str, Any]) -> None:
    path = execute(config_of(mini, "name=whole"))
    record = read_run(path)
    assert record.status["state"] == "finished"
    assert {"forget/accuracy", "retain/accuracy_unseen", "latent/c2st_auc", "latent/c2st_null_low", "cost/step_seconds"} <= set(
        record.results
    )
    assert (path / "checkpoints" / "last.ckpt").exists()
    assert np.load(path / "activations.npz")["target_after_KD"].shape[1] == 32
    run = mlflow_run(mini, path)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.001"
    assert run.data.tags["fingerprint"] == record.manifest["fingerprint"]
    assert run.data.tags["method"] == "sae_guided"
    assert run.data.metrics["forget/accuracy"] == pytest.approx(record.results["forget/accuracy"])
    from mlflow import MlflowClient

    client = MlflowClient(mini["tracking"]["uri"])
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "forget/accuracy_paraphrased")] == [0]  # a result alone is a bar
    assert run.data.tags["mlflow.note.content"].split()[0] in ("Stopped", "Did")
    drawn = {item.path for item in client.list_artifacts(run.info.run_id, "plots")}
    assert {"plots/steps_p_unknown.png", "plots/steps_p_unknown.svg", "plots/picture.png"} <= drawn
    assert {"results.json", "samples.jsonl", "config.yaml"} <= {f.path.split("/")[-1] for f in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_results(mini: dict[str, Any]) -> None:
    a, b = (read_run(execute(config_of(mini, f"name=again{i}", "tracking.enabled=false"))).results for i in range(2))
    same = {k: v for k, v in a.items() if not k.startswith("cost/")}
    assert same == {k: v for k, v in b.items() if not k.startswith("cost/")}


def test_the_original_model_is_measured_by_method_none(mini: dict[str, Any]) -> None:
    results = read_run(execute(config_of(mini, "name=base", "tracking.enabled=false", method="none"))).results
    assert results["collapse/flag"] == 0
    assert results["generic/perplexity"] == results["generic/perplexity_base"]


@pytest.mark.slow
def test_lora_trains_adapters_only(mini: dict[str, Any]) -> None:
    path = execute(config_of(mini, "name=lora", "tracking.enabled=false", "model.trainable.mode=lora", "model.lora.rank=2"))
    state = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in state if name.startswith("lm."))
    assert read_run(path).status["state"] == "finished"


@pytest.mark.slow
def test_finished_run_is_kept_and_another_configuration_is_refused(mini: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = execute(config_of(mini, "name=kept", "tracking.enabled=false", "optim.steps=2"))
    before = (path / "results.json").stat().st_mtime_ns
    assert execute(config_of(mini, "name=kept", "tracking.enabled=false", "optim.steps=2")) == path
    assert (path / "results.json").stat().st_mtime_ns == before
    assert "finished before" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"kept must be a new folder; found a run with another configuration\. .* --force"):
        execute(config_of(mini, "name=kept", "tracking.enabled=false", "optim.steps=3"))
    execute(config_of(mini, "name=kept", "tracking.enabled=false", "optim.steps=3"), force=True)
    assert "steps: 3" in (path / "config.yaml").read_text()


def test_sae_at_the_wrong_layer(mini: dict[str, Any]) -> None:
    with pytest.raises(
        ModelError, match=rf"sae\.layer must be the block the SAE was trained on; found {LAYER + 1}, but .* block {LAYER} better"
    ):
        execute(config_of(mini, "name=wrong_layer", f"sae.layer={LAYER + 1}", "tracking.enabled=false"))
    status = json.loads((Path(str(mini["out"])) / "wrong_layer" / "status").read_text())
    assert status["state"] == "failed"
    assert "sae.layer" in status["reason"]


def test_sae_of_another_width(mini: dict[str, Any], tmp_path: Path) -> None:
    other = tiny_llama(d_model=16, layers=4)
    fitted_sae(
        other, ["Question: Where was Ann Lee born?\nAnswer: Paris, London and the city of English authors."], LAYER, tmp_path / "sae", 16
    )
    with pytest.raises(ModelError, match="16.*32|32.*16"):
        execute(config_of(mini, "name=wrong_width", f"sae.path={tmp_path / 'sae'}", "tracking.enabled=false"))


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("data.path=nowhere.jsonl", DataError, r"nowhere\.jsonl"),
        ("model.path=./no_model", ModelError, "no_model"),
        ("sae.path=./no_sae", ModelError, "no_sae"),
    ],
)
def test_missing_files_are_named(mini: dict[str, Any], override: str, error: type[UnlearnError], words: str) -> None:
    with pytest.raises(error, match=words):
        execute(config_of(mini, f"name=missing_{override[:5]}", override, "tracking.enabled=false"))


def bad_rows(tmp_path: Path, change: Any) -> str:
    rows = lines()
    change(rows)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.path={path}"


def test_overlap_of_streams(mini: dict[str, Any], tmp_path: Path) -> None:
    override = bad_rows(tmp_path, lambda rows: rows.append({**rows[0], "split": "retain"}))
    with pytest.raises(DataError, match="Ann Lee"):
        execute(config_of(mini, "name=overlap", override, "tracking.enabled=false"))


def test_entity_that_is_not_in_its_row(mini: dict[str, Any], tmp_path: Path) -> None:
    override = bad_rows(tmp_path, lambda rows: rows[0].update(question="Where was she born?"))
    with pytest.raises(DataError, match="Ann Lee"):
        execute(config_of(mini, "name=nowhere", override, "tracking.enabled=false"))


def test_empty_stream(mini: dict[str, Any], tmp_path: Path) -> None:
    def drop(rows: list[dict[str, str]]) -> None:
        rows[:] = [row for row in rows if row["split"] not in ("forget", "forget_paraphrased")]

    with pytest.raises(DataError, match="forget"):
        execute(config_of(mini, "name=empty", bad_rows(tmp_path, drop), "tracking.enabled=false"))


@pytest.mark.slow
def test_an_unreachable_store_is_said_once_and_the_run_goes_on(mini: dict[str, Any]) -> None:
    with pytest.warns(RuntimeWarning, match=r"127\.0\.0\.1:9") as said:
        path = execute(config_of(mini, "name=no_store", "tracking.uri=http://127.0.0.1:9"))
    assert len([w for w in said if "127.0.0.1:9" in str(w.message)]) == 1
    assert read_run(path).status["state"] == "finished"
    assert (path / "results.json").exists()


@pytest.mark.slow
def test_a_diverging_run_fails_with_the_reason_and_keeps_what_was_measured(mini: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="must be finite"):
        execute(config_of(mini, "name=diverge", "optim.lr=1e30", "optim.clip=0", "optim.steps=20", method="gradient_ascent"))
    record = read_run(Path(str(mini["out"])) / "diverge")
    assert record.status["state"] == "failed"
    assert "must be finite" in record.status["reason"]
    assert (record.path / "checkpoints" / "last_good.ckpt").exists()
    assert record.metrics
    assert mlflow_run(mini, record.path).info.status == "FAILED"


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_resume_goes_on(mini: dict[str, Any], tmp_path: Path) -> None:
    """A real process, a real signal; the resumed run ends where an uninterrupted one does."""
    steps = 200
    seldom = {**mini["evaluation"], "every": 100}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**mini, "name": "cut", "optim": {"steps": steps, "lr": 1e-3}, "evaluation": seldom}))
    with (tmp_path / "said").open("wb") as file:
        process = Command(["unlearn", "run", str(tmp_path / "run.yaml")], stdout=file, env=os.environ)
    folder = Path(str(mini["out"])) / "cut"
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline and not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, (tmp_path / "said").read_text()
    assert re.search(r"--resume", (tmp_path / "said").read_text())
    assert json.loads((folder / "status").read_text())["state"] == "killed"
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert mlflow_run(mini, folder).info.status == "KILLED"

    resume(folder)
    record = read_run(folder)
    assert record.status["state"] == "finished"
    logged = [m["step"] for m in record.metrics if m["key"] == "train/loss"]
    assert logged == list(range(steps))
    whole = read_run(execute(config_of(mini, "name=uncut", f"optim.steps={steps}", "evaluation.every=100", "tracking.enabled=false")))
    assert record.results["latent/distance_to_unknown"] == pytest.approx(whole.results["latent/distance_to_unknown"], rel=1e-5)
    assert mlflow_run(mini, folder).info.status == "FINISHED"
