"""`unlearn attack` on runs, on a model's folder, and when something is wrong; through the command line where a user would meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.mini import make_mini
from tests.test_restore import SETTINGS, digest
from unlearn.attack import attack, weights_hash
from unlearn.attack_files import record_path
from unlearn.attacks.base import Outcome
from unlearn.attacks.relearn import Relearn
from unlearn.cli import main
from unlearn.config.attacks import attack_settings, chosen_attacks
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import ConfigError, DataError, RunError
from unlearn.registry import entries
from unlearn.run import execute
from unlearn.tracking.files import read_json
from unlearn.tracking.reader import read_run
from unlearn.tracking.rundir import RunDirectory

SMALL = ["attack.relearn.lrs=[1e-3]", "attack.relearn.steps=[1,2]", "attack.relearn.splits=1"]


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_mini(tmp_path_factory.mktemp("mini"))


def run_of(mini: dict[str, Any], method: str, name: str) -> Path:
    section = {"name": method, **SETTINGS.get(method, {})}
    return execute(load_config({**mini, "name": name, "method": section}, [], plugin_schemas()))


@pytest.fixture(scope="module")
def run(mini: dict[str, Any]) -> Path:
    return run_of(mini, "grad_diff", "study/grad_diff")


@pytest.fixture(scope="module")
def acting(mini: dict[str, Any]) -> Path:
    return run_of(mini, "sae_clamp", "study/sae_clamp")


def call(*words: object) -> int:
    try:
        main([str(word) for word in words])
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


def test_results_join_the_run_and_the_model_stays(run: Path) -> None:
    before, weights = read_json(run / "results.json"), digest(run)["weights.safetensors"]
    done = attack(str(run), "relearn", (), SMALL)
    after = read_json(run / "results.json")
    assert {key: after[key] for key in before} == before
    new = after.keys() - before.keys()
    assert {"attack/relearn_recovery", "attack/relearn_control", "attack/relearn_excess", "attack/relearn_recovery@lr0.001_step2"} <= new
    assert all(key.startswith("attack/relearn_") for key in new)
    assert after["attack/relearn_excess"] == pytest.approx(after["attack/relearn_recovery"] - after["attack/relearn_control"])
    assert digest(run)["weights.safetensors"] == weights
    assert done.names == ("relearn",)
    assert not done.failed
    assert not done.skipped
    assert done.path == run
    assert read_run(run).number("attack/relearn_recovery") is not None
    assert {"attack_relearn.png", "attack_relearn.svg"} <= {p.name for p in (run / "plots").iterdir()}
    record = read_json(record_path(RunDirectory(run), "relearn"))
    assert Outcome.of_record(record["outcome"]).results("attack/relearn", "recovery", 20, 0) == {k: after[k] for k in new}


@pytest.mark.slow
def test_results_join_the_mlflow_run(mini: dict[str, Any], run: Path) -> None:
    from mlflow import MlflowClient

    done = attack(str(run), "relearn", (), [*SMALL, "attack.relearn.share=0.5"])
    client = MlflowClient(mini["tracking"]["uri"])
    kept = client.get_run(read_json(run / "manifest.json")["mlflow_run_id"])
    assert kept.info.status == "FINISHED"
    assert kept.data.metrics["attack/relearn_excess"] == pytest.approx(done.results["attack/relearn_excess"])
    assert "forget/accuracy" in kept.data.metrics
    attack(str(run), "relearn", (), SMALL, force=True)
    history = client.get_metric_history(kept.info.run_id, "attack/relearn_excess")
    assert len({metric.step for metric in history}) == len(history) >= 2
    assert "attack_relearn.png" in {Path(f.path).name for f in client.list_artifacts(kept.info.run_id, "plots")}


@pytest.mark.slow
def test_what_was_done_is_kept_and_other_settings_replace_it(run: Path) -> None:
    attack(str(run), "relearn", (), SMALL)
    stamp = record_path(RunDirectory(run), "relearn").stat().st_mtime_ns
    assert attack(str(run), "relearn", (), SMALL).kept == ("relearn",)
    assert record_path(RunDirectory(run), "relearn").stat().st_mtime_ns == stamp
    assert attack(str(run), "relearn", (), SMALL, force=True).kept == ()
    changed = attack(str(run), "relearn", (), [*SMALL, "attack.relearn.steps=[3]"])
    keys = [key for key in changed.results if key.startswith("attack/relearn_")]
    assert changed.kept == ()
    assert not [key for key in keys if "step2" in key]


@pytest.mark.slow
def test_an_interruption_loses_one_attack_at_most(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unlearn.attacks.relearn.RelearnHalf.run", stop)
        with pytest.raises(KeyboardInterrupt):
            attack(str(run), "relearn,relearn_half", (), [*SMALL, "attack.relearn_half.steps=[1]"], force=True)
    again = attack(str(run), "relearn,relearn_half", (), [*SMALL, "attack.relearn_half.steps=[1]", "attack.relearn_half.lrs=[1e-3]"])
    assert again.kept == ("relearn",)
    assert "attack/relearn_half_recovery" in again.results


@pytest.mark.slow
def test_one_attack_that_fails_does_not_stop_the_others(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DataError("two facts are needed; found one.")

    monkeypatch.setattr("unlearn.attacks.relearn.RelearnHalf.run", fail)
    told = []
    done = attack(str(run), "relearn_half,relearn", (), [*SMALL, "seed=0"], force=True, told=lambda *what: told.append(what))
    assert [name for name, _ in told] == ["relearn_half"] == list(done.failed)
    assert "attack/relearn_recovery" in done.results


def test_an_attack_that_changes_the_model_is_found_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Relearn.run

    def spoil(self: Relearn, context: Any) -> Outcome:
        next(context.lm.parameters()).data.add_(1e-3)
        return honest(self, context)

    monkeypatch.setattr(Relearn, "run", spoil)
    with pytest.raises(RunError, match="'relearn' must leave the model as it is"):
        attack(str(run), "relearn", (), SMALL, force=True)


def test_the_hash_sees_one_weight(run: Path) -> None:
    from unlearn.restore import restore

    lm = restore(run).module.lm
    before = weights_hash(lm)
    assert weights_hash(lm) == before
    next(lm.parameters()).data.view(-1)[0] += 1e-6
    assert weights_hash(lm) != before


@pytest.mark.slow
def test_the_gold_model_is_attacked_once_for_all_runs(
    mini: dict[str, Any], run: Path, acting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL, f"evaluation.gold={mini['model']['path']}"]
    first = attack(str(run), "relearn", (), words)
    assert {"attack/relearn_gold", "attack/relearn_gold_control", "attack/relearn_gold_excess"} <= first.results.keys()
    calls = []
    honest = Relearn.run
    monkeypatch.setattr(Relearn, "run", lambda self, context: calls.append(1) or honest(self, context))
    second = attack(str(acting), "relearn", (), words)
    assert len(calls) == 1
    assert second.results["attack/relearn_gold"] == first.results["attack/relearn_gold"]
    assert attack(str(run), "relearn", (), words).kept == ("relearn",)


def test_what_a_model_does_not_come_with_is_said(run: Path, acting: Path) -> None:
    done = attack(str(run), "strip")
    assert list(done.skipped) == ["strip"]
    assert not [key for key in done.results if key.startswith("attack/strip")]
    assert "attack/strip_accuracy" in attack(str(acting), "strip").results


@pytest.mark.slow
def test_a_models_folder_is_attacked_too(mini: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(mini["model"]["path"])
    before = digest(model)
    data = ["data.source=jsonl", f"data.path={mini['data']['path']}", "data.refusals=[unknown]", "trainer.accelerator=cpu"]
    words = [*data, "evaluation.max_new_tokens=4", "evaluation.bootstrap=20", f"cache={tmp_path}/cache", *SMALL]
    assert call("attack", model, *words, "--suite", "relearn,patch", "--out", tmp_path / "found") == 0
    shown = capsys.readouterr()
    assert "relearn" in shown.out
    assert "patch was not made: it needs the original model (--base)" in " ".join(shown.err.split())
    assert "attack/relearn_excess" in read_json(tmp_path / "found" / "results.json")
    assert digest(model) == before
    assert call("attack", model, *words, "--suite", "relearn,patch", "--out", tmp_path / "found", "--base", model) == 0
    assert "attack/patch_accuracy" in read_json(tmp_path / "found" / "results.json")


@pytest.mark.slow
def test_a_folder_of_runs_stands_for_all_of_them(run: Path, acting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("attack", run.parent, "--suite", "relearn", *SMALL) == 0
    out = capsys.readouterr().out
    assert out.count("share of right answers at the best setting") == 2
    assert all("attack/relearn_excess" in read_json(path / "results.json") for path in (run, acting))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "relern"], "--suite must be quick, full or names of attacks; found 'relern'. Did you mean 'relearn'?"),
        (["attack.relern.lrs=[1]"], "attack.relern is not a known key. Did you mean 'attack.relearn'?"),
        (["attack.relearn.lrs=[2.0]"], "attack.relearn.lrs must be numbers in (0, 1); found [2.0]"),
        (["attack.relearn.lrs=fast"], "attack.relearn.lrs"),
        (["--out", "x"], "--out must be left out for a run"),
        (["model.path=elsewhere"], "model must be left out for a run"),
    ],
)
def test_bad_input_gets_one_sentence(run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(run)
    assert call("attack", run, *words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert digest(run) == before


def test_without_a_model_the_command_says_what_it_expects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("attack") == 2
    assert "expected a run, a model's folder or a hub id" in capsys.readouterr().err
    assert call("attack", tmp_path) == 2
    assert "must be a run or a folder of runs" in " ".join(capsys.readouterr().err.split())


def test_every_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("attack", "--help-config") == 0
    shown = capsys.readouterr().out
    assert "attack.relearn.lrs" in shown
    assert "attack.sample." in shown


def test_suites_and_their_settings(tmp_path: Path) -> None:
    every = list(entries("attack"))
    assert chosen_attacks("full") == every
    assert chosen_attacks("strip,relearn") == ["strip", "relearn"]
    quick = attack_settings("quick")
    assert set(quick) < set(every)
    assert quick["relearn"].splits == 1
    assert attack_settings("full")["relearn"].splits == 3
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps({"attack": {"relearn": {"splits": 2}}}))
    from unlearn.config.attacks import separate

    mine, rest = separate([path], ["seed=3", "attack.relearn.share=0.3"])
    made = attack_settings("quick", mine)["relearn"]
    assert (made.splits, made.share, made.steps) == (2, 0.3, [5, 20, 50])
    assert [layer.tree for layer in rest] == [{"seed": 3}]
    with pytest.raises(ConfigError, match="names of attacks"):
        attack_settings("")
