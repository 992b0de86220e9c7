"""Studies of real runs on a tiny model: pruning, MLflow, attacks, and the command as a user gives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.forks import Command
from tests.mini import make_mini
from unlearn.cli import main
from unlearn.config.sweep import load_sweep
from unlearn.sweep import run_sweep
from unlearn.tracking.files import read_json, read_lines
from unlearn.tracking.reader import read_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    mini = make_mini(tmp_path_factory.mktemp("mini"))
    return {key: value for key, value in mini.items() if key not in ("name", "method")}


def sweep(base: dict[str, Any], name: str, **keys: Any) -> dict[str, Any]:
    method = {"method": {"name": "grad_diff"}}
    return {"sweep": name, "base": {**base, **method}, "search": {"optim.lr": {"low": 1e-6, "high": 1.0, "log": True}}, **keys}


def test_a_bad_trial_is_ended_early_and_everything_is_in_mlflow(base: dict[str, Any]) -> None:
    given = sweep(
        base,
        "pruned",
        objectives={"generic/kl_to_base": "minimize"},
        pruner={"name": "median", "startup": 2},
        first=[{"optim.lr": 1e-5}, {"optim.lr": 2e-5}, {"optim.lr": 0.3}],
        trials=3,
    )
    out = run_sweep(load_sweep(given))
    assert [t.state for t in out.trials] == ["finished", "finished", "pruned"]
    path = out.trials[2].path
    assert path is not None
    assert read_json(path / "status")["state"] == "stopped"
    assert read_json(path / "status")["reason"] == "pruned at step 2: generic/kl_to_base is worse than the median of the trials"
    steps = [row["step"] for row in read_lines(path / "metrics.jsonl") if row["key"] == "train/loss"]
    assert max(steps) == 1
    assert {p.name for p in (out.folder / "plots").iterdir()} >= {"history.png", "history.svg", "courses.png"}

    from mlflow import MlflowClient

    client = MlflowClient(base["tracking"]["uri"])
    (experiment,) = [e for e in client.search_experiments() if e.name == "unlearn"]
    (parent,) = client.search_runs([experiment.experiment_id], "tags.sweep = 'pruned' and tags.kind = 'sweep'")
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_name for run in children} == {f"trial_{i:03d}" for i in range(3)}
    assert {run.info.status for run in children} == {"FINISHED"}
    assert parent.info.status == "FINISHED"
    assert out.best is not None
    assert parent.data.metrics["best/generic/kl_to_base"] == pytest.approx(out.best.values[0])
    assert parent.data.tags["best.optim.lr"] == str(out.best.params["optim.lr"])
    assert {"sweep.json", "trials.csv", "best.yaml", "history.png"} <= {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert load_sweep(given).config(out.best.params).optim.lr == yaml.safe_load((out.folder / "best.yaml").read_text())["optim"]["lr"]


def test_an_accuracy_that_is_followed_is_that_of_the_results(base: dict[str, Any]) -> None:
    given = sweep(base, "followed", objectives={"retain/accuracy": "maximize"}, pruner="median", first=[{"optim.lr": 1e-4}], trials=1)
    (trial,) = run_sweep(load_sweep(given)).trials
    assert trial.path is not None
    record = read_run(trial.path)
    steps, values = record.series("retain/accuracy_quick")
    assert steps == [2, 4, 6]
    assert values[-1] == record.results["retain/accuracy"] == trial.values[0]


def test_an_attack_gives_an_objective(base: dict[str, Any]) -> None:
    given = sweep(
        base,
        "attacked",
        objectives={"forget/probability": "minimize", "attack/quantise_excess": "minimize"},
        attacks=["quantise"],
        first=[{"optim.lr": 1e-3}],
        trials=1,
    )
    out = run_sweep(load_sweep(given, ["tracking.enabled=false"]))
    (trial,) = out.trials
    assert trial.path is not None
    results = read_run(trial.path).results
    assert trial.values == (results["forget/probability"], results["attack/quantise_excess"])
    assert (trial.path / "attacks" / "quantise.json").is_file()


COMMAND = [sys.executable, "-m", "unlearn", "sweep", "toy.yaml"]


def command(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMAND, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def began(folder: Path, number: int) -> bool:
    return (folder / f"trial_{number:03d}" / "metrics.jsonl").is_file()


def test_the_command_goes_on_after_kill_9(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the middle of a trial, then started again: the table, the files, and no trial lost or made twice."""
    given = sweep(base, "toy", objectives={"forget/probability": "minimize"}, sampler="random", trials=3)
    given["base"] = {**given["base"], "out": str(tmp_path / "runs"), "tracking": {"enabled": False}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(given))
    folder = tmp_path / "runs" / "toy"
    first = command(tmp_path)
    until = time.monotonic() + 600
    while not began(folder, 1):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    first.kill()
    first.communicate()
    journal = folder / "study.journal"
    before = (folder / "trial_000" / "results.json").stat().st_mtime_ns
    with (tmp_path / "said").open("wb") as file:
        code = Command(COMMAND, cwd=tmp_path, stdout=file, env=os.environ).wait()
    said = (tmp_path / "said").read_text()
    assert code == 0, said
    assert "toy: 3 finished, of 3" in said
    assert "best: trial" in said
    kept = json.loads((folder / "sweep.json").read_text())
    assert [(t["number"], t["state"]) for t in kept["trials"]] == [(0, "finished"), (1, "finished"), (2, "finished")]
    assert (folder / "trial_000" / "results.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in folder.glob("trial_*")) == ["trial_000", "trial_001", "trial_002"]
    assert journal.is_file()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ending:
        main(["sweep", "toy.yaml", "--status"])
    assert not ending.value.code
    assert "toy: 3 finished, of 3" in capsys.readouterr().out


def test_signals_save_and_the_same_command_goes_on(base: dict[str, Any], tmp_path: Path) -> None:
    """A scheduler's signal, then Ctrl-C: the run is saved both times, and gone on with from where it was."""
    import sae_lens  # noqa: F401  (for all processes)

    given = sweep(base, "toy", objectives={"forget/probability": "minimize"}, trials=2)
    given["base"] = {**given["base"], "out": str(tmp_path / "runs"), "tracking": {"enabled": False}, "optim": {"steps": 100_000}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(given))
    folder, reached = tmp_path / "runs" / "toy", -1
    for number, status in ((signal.SIGUSR1, 75), (signal.SIGINT, 130)):
        with (tmp_path / "said").open("wb") as said:
            process = Command(COMMAND, cwd=tmp_path, stdout=said, env=os.environ)
        until = time.monotonic() + 600
        while last_step(folder / "trial_000") <= reached:
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait() == status, (tmp_path / "said").read_text()
        assert "stopping: workers save and leave" in (tmp_path / "said").read_text()
        assert "unlearn sweep toy.yaml goes on with it" in (tmp_path / "said").read_text()
        assert read_json(folder / "trial_000" / "status")["state"] == "killed"
        assert (folder / "trial_000" / "checkpoints" / "last.ckpt").is_file()
        kept = json.loads((folder / "sweep.json").read_text())
        assert [(t["number"], t["state"]) for t in kept["trials"]] == [(0, "interrupted")]
        reached = last_step(folder / "trial_000")
    steps = [row["step"] for row in read_lines(folder / "trial_000" / "metrics.jsonl") if row["key"] == "train/loss"]
    assert steps == list(range(len(steps)))


def last_step(path: Path) -> int:
    """The last step of a run's log; -1 before the first."""
    return max((row["step"] for row in read_lines(path / "metrics.jsonl") if row["key"] == "train/loss"), default=-1)


def test_two_workers_build_the_world_once(tmp_path: Path) -> None:
    """With an empty cache, both begin a trial at once; one builds the miniature world and its measurements, the other waits for them."""
    from tests.forks import ended, forked
    from unlearn.world import build

    world = {"source": "world", "n_forget": 2, "n_retain": 3, "n_unseen": 2, "n_tail": 10, "n_unknown": 12, "n_heldout": 12}
    world |= {"blocks": 2, "width": 16, "steps": 4, "sae_latents": 24, "heldout_latents": 20, "sae_k": 4, "sae_steps": 3, "sae_rows": 3}
    base: dict[str, Any] = {
        "out": str(tmp_path / "runs"),
        "cache": str(tmp_path / "cache"),
        "data": {**world, "batch": {"forget": 4, "retain": 4, "known": 4, "unknown": 4}},
        "method": {"name": "grad_diff"},
        "sae": {"check_hook": False},
        "latents": {"top_k": 4},
        "optim": {"steps": 2},
        "evaluation": {"bootstrap": 5, "permutations": 5, "null_draws": 2, "every": 0, "max_new_tokens": 4},
        "trainer": {"accelerator": "cpu", "devices": "1", "progress_bar": False},
        "tracking": {"enabled": False},
    }
    spec = load_sweep(
        {"sweep": "shared", "base": base, "search": {"seed": {"value": 0}, "optim.lr": {"low": 1e-5, "high": 1e-3}}, "trials": 2}
        | {"objectives": {"forget/probability": "minimize"}, "sampler": "random"}
    )
    built = tmp_path / "built"
    trained = build.pretrain

    def counted(*words: Any, **keys: Any) -> float:
        with built.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return trained(*words, **keys)

    def work() -> None:
        build.pretrain = counted
        run_sweep(spec)

    pids = [forked(work, tmp_path / f"log_{i}") for i in range(2)]
    assert [ended(pid) for pid in pids] == [0, 0], [(tmp_path / f"log_{i}").read_text()[-2000:] for i in range(2)]
    kept = json.loads((tmp_path / "runs" / "shared" / "sweep.json").read_text())
    assert [(t["state"], t["reason"]) for t in kept["trials"]] == [("finished", "")] * 2
    assert len(built.read_text().split()) == 1
    assert {run.name for run in (tmp_path / "runs" / "shared").glob("trial_*")} == {"trial_000", "trial_001"}
