import json
import subprocess
import sys
from importlib.metadata import version

from unlearn.config.fingerprint import fingerprint
from unlearn.config.schema import BatchConfig, MethodConfig, RunConfig, SourceConfig, TrainerConfig
from unlearn.tracking.manifest import git_state, update_manifest, write_manifest
from unlearn.tracking.rundir import RunDirectory

CONFIG = RunConfig(
    name="npo",
    seed=7,
    data=SourceConfig(source="world", batch=BatchConfig(forget=16, retain=24)),
    method=MethodConfig(name="npo"),
    trainer=TrainerConfig(accumulate=4),
)


def test_the_manifest_holds_what_is_needed_to_repeat_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/unlearn", "run", "npo.yaml", "data.question_format=Q: {question}"])
    run = RunDirectory.create(tmp_path, "npo")
    write_manifest(run, CONFIG, {"data_fingerprint": "abc", "world_size": 2})
    stored = json.loads(run.manifest_path.read_text())
    assert stored["fingerprint"] == fingerprint(CONFIG)
    assert stored["seeds"] == {"seed": 7}
    assert stored["batch"] == {"forget": 16, "retain": 24, "known": 32, "unknown": 32, "accumulate": 4}
    assert stored["command"] == "unlearn run npo.yaml 'data.question_format=Q: {question}'"
    assert stored["versions"]["torch"] == version("torch")
    assert (stored["data_fingerprint"], stored["world_size"]) == ("abc", 2)
    assert stored["git"] is None
    assert stored["hardware"]["cpus"] >= 1
    assert "node" not in stored["hardware"]


def test_update_adds_keys(tmp_path):
    run = RunDirectory.create(tmp_path, "npo")
    write_manifest(run, CONFIG)
    update_manifest(run, {"mlflow_run_id": "r1"})
    stored = json.loads(run.manifest_path.read_text())
    assert (stored["name"], stored["mlflow_run_id"]) == ("npo", "r1")


def test_git_state_follows_the_working_tree(tmp_path):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(("git", "-C", str(tmp_path), *identity, *words), check=True, capture_output=True, text=True).stdout.strip()

    assert git_state(tmp_path) is None
    git("init", "-q")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-qm", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path)["dirty"] is True
