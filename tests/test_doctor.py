"""``unlearn doctor`` with a configuration: on a tiny model with a fitted SAE and rows on disk, nothing is a stand-in but GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.sources.fake_benchmarks import write_popqa
from tests.mini import make_mini
from unlearn.cli import main
from unlearn.registry import entries, find

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mini")
    return make_mini(folder)


@pytest.fixture
def doctor(mini: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """(exit status, findings by name) of ``unlearn doctor run.yaml --json ...``."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, **sections: Any) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        capsys.readouterr()
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**mini, **sections}), encoding="utf-8")
        with pytest.raises(SystemExit) as ending:
            main(["doctor", "run.yaml", "--json", *words])
        report = json.loads(capsys.readouterr().out)
        assert report["verdict"] == ("fail" if report["fail"] else "warn" if report["warn"] else "ok")
        found: dict[str, list[dict[str, Any]]] = {}
        for finding in report["findings"]:
            found.setdefault(finding["what"], []).append(finding)
        return int(ending.value.code or 0), found

    return call


def test_a_run_that_would_work(doctor: Any) -> None:
    code, found = doctor()
    assert code == 0, found
    (hook,) = found["hook"]
    assert hook["status"] == "ok"
    assert min(hook["facts"]["fvu"], key=hook["facts"]["fvu"].get) == "1"
    memory = found["memory"][-1]
    assert memory["facts"]["peak_bytes"] == pytest.approx(max(sum(memory["facts"]["parts"].values()), memory["facts"]["measuring_bytes"]))
    assert 0 < memory["facts"]["peak_bytes"] < memory["facts"]["room_bytes"]
    (time,) = found["time"]
    assert 0 < time["facts"]["step_seconds"] < 60
    assert "FLOP/s" in time["text"]
    (batch,) = found["batch"]
    assert batch["text"].endswith("forget 4, retain 4, known 4, unknown 4")


def test_the_tests_power_is_said_with_what_would_help(doctor: Any) -> None:
    _, found = doctor("--quick")
    assert "hook" not in found
    (power,) = found["power"]
    assert power["facts"]["targets"] == 2
    assert power["facts"]["detectable_auc"] is None
    assert power["status"] == "warn"
    assert power["remedy"].startswith("forget more entities")
    (anchors,) = found["anchors"]
    assert (anchors["status"], anchors["facts"]["unknown"]) == ("warn", 6)
    assert "--label-entities" in anchors["remedy"]


def test_an_sae_at_the_wrong_layer_fails_with_the_layer_that_fits(doctor: Any) -> None:
    code, found = doctor("sae.layer=2")
    assert code == 1
    (hook,) = found["hook"]
    assert hook["status"] == "fail"
    assert "block 1" in hook["text"]
    assert "sae.layer" in hook["remedy"]


def test_a_batch_that_cannot_be_shared_out(doctor: Any) -> None:
    code, found = doctor("--quick", "--devices", "3")
    assert code == 1
    assert [f["remedy"] for f in found["batch"] if f["status"] == "fail"] == [
        f"data.batch.{stream}=3" for stream in ("forget", "retain", "known", "unknown")
    ]


def test_a_gpu_that_is_too_small_gets_a_change_that_fits(doctor: Any, mini: dict[str, Any]) -> None:
    code, found = doctor("--quick", "--gpu-memory", "24")
    assert code == 0
    assert found["memory"][-1]["status"] == "ok"
    code, found = doctor("--quick", "--gpu-memory", "0.6")
    memory = found["memory"][-1]
    assert (code, memory["status"]) == (1, "fail")
    assert memory["remedy"].startswith("take a smaller model")  # what the framework takes alone is more
    many = {"data": {**mini["data"], "batch": dict.fromkeys(("forget", "retain", "known", "unknown"), 256)}}
    room = memory["facts"]["peak_bytes"] / 1e9 + 0.08
    code, found = doctor("--quick", "--gpu-memory", f"{room:.6f}", **many)
    memory = found["memory"][-1]
    assert (code, memory["status"]) == (1, "fail")
    words = memory["remedy"].split(" (")[0].split()
    code, found = doctor("--quick", "--gpu-memory", f"{room:.6f}", *words, **many)
    assert (code, found["memory"][-1]["status"]) == (0, "ok")


def test_files_that_are_not_there_are_named_with_their_public_address(doctor: Any, tmp_path: Path) -> None:
    code, found = doctor("--quick", data={"source": "popqa", "root": "nowhere"})
    assert code == 1
    (data,) = found["data"]
    assert data["status"] == "fail"
    assert "https://huggingface.co/datasets/akariasai/PopQA" in data["remedy"]
    assert found["power"][0]["text"] == "not looked at, since data cannot be read (see above)"
    assert found["memory"][-1]["status"] == "ok"  # from rows of a usual length


def test_every_source_with_files_says_where_they_are(tmp_path: Path) -> None:
    own = {"jsonl", "world"}
    for name in entries("source"):
        cls = find("source", name).load()
        address = cls(cls.Config(source=name), seed=0, cache=tmp_path).where()
        assert address.startswith("https://") == (name not in own), name


def test_known_and_unknown_names_are_labelled(doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_popqa(tmp_path / "popqa")
    monkeypatch.setattr("unlearn.label.Asker.__call__", lambda self, name, facts: {facts[0].attribute: 10 * (len(name) % 2)})
    rows = {"source": "popqa", "root": f"{tmp_path}/popqa"}
    _, found = doctor("--quick", "--label-entities", "--labels", str(tmp_path / "l.json"), data=rows)
    (labels,) = found["labels"]
    kept = json.loads((tmp_path / "l.json").read_text())
    assert sum(labels["facts"]["counts"].values()) == len(kept["entities"]) > 1
    assert f"{tmp_path}/l.json" in labels["text"]


def test_labels_of_a_source_without_facts_are_refused_with_what_to_do(doctor: Any) -> None:
    code, found = doctor("--quick", "--label-entities")
    assert code == 1
    assert "--entities" in found["labels"][0]["text"]
    assert "unlearn label" in found["labels"][0]["remedy"]


def test_a_model_that_is_not_here_is_estimated_from_its_published_shape(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    there = {"model": {"path": "openai-community/gpt2"}, "method": {"name": "grad_diff"}}
    code, found = doctor("--quick", "--gpu-memory", "24", **there)
    assert code == 1
    assert found["model"][0]["status"] == "fail"
    assert "download" in found["model"][0]["remedy"]
    memory = found["memory"][-1]
    assert memory["facts"]["parts"]["weights"] == pytest.approx(124.4e6 * 4, rel=0.01)
