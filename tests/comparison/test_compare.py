"""The whole command, on a tiny model: tuned, measured, attacked; gone on with; in a fresh clone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tests.mini import make_mini
from tests.toys import ANSWERS, QUESTIONS
from unlearn.cli.comparison import start
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tree: dict[str, Any] = {**make_mini(tmp_path), "optim": {"steps": 3, "lr": 1e-3}, "tracking": {"enabled": False}}
    tree["evaluation"] = {**tree.get("evaluation", {}), "every": 0, "bootstrap": 20}
    with (tmp_path / "rows.jsonl").open("a") as rows:  # enough people for a validation of its own
        for i, name in enumerate(("Uma Vail", "Wes Yarn", "Zoe Abel", "Yan Mott", "Vic Holm")):
            for k, question in enumerate(QUESTIONS):
                line = {"question": question.format(name), "answer": ANSWERS[(i + k) % len(ANSWERS)], "entity": name, "split": "retain"}
                rows.write(json.dumps(line) + "\n")
    tree["attack"] = {"relearn": {"lrs": [1e-3], "steps": [1], "splits": 1}}
    file = tmp_path / "fair.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def go(
    config: Path,
    ledger: Path,
    methods: str = "none,gradient_ascent,kl_min",
    *,
    jobs: int = 1,
    words: tuple[str, ...] = (),
    out: Path | None = None,
    trials: int = 3,
    seeds: str = "2",
) -> dict[str, Any]:
    start([str(config), *words], methods, trials, seeds, False, "relearn", "kl_min", jobs, ledger, out)
    summary: dict[str, Any] = json.loads((ledger / "summary.json").read_text())
    return summary


def test_two_processes_then_a_fresh_clone(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "ledger"
    summary = go(config, ledger, jobs=2, out=tmp_path / "report.html")
    rows = summary["methods"]
    assert set(rows) == {"none", "gradient_ascent", "kl_min"}
    assert all(row["complete"] for row in rows.values())
    assert summary["progress"]["tests"] == summary["progress"]["tests_in_all"] == 6
    assert {name: row["tuned"] for name, row in rows.items()} == {"none": False, "gradient_ascent": True, "kl_min": True}
    assert rows["kl_min"]["robustness"]["mean"] is not None
    assert "gradient_ascent" in capsys.readouterr().out

    page = (tmp_path / "report.html").read_text(encoding="utf-8")  # of the tests; what tuning tried is in the ledger
    assert "3 methods · 6 tests · 3 settings · 6 runs" in page
    assert "trial_00" not in page

    tuning = json.loads((ledger / "tuning" / "kl_min.json").read_text())
    assert [trial["number"] for trial in tuning["trials"]] == [0, 1, 2]
    assert tuning["trials"][0]["params"]["optim.lr"] == 1e-3  # the default comes first
    best = max(tuning["trials"], key=lambda trial: (trial["score"], -trial["number"]))
    assert tuning["best"]["number"] == best["number"]
    assert all(trial["cpu_seconds"] > 0 and set(trial["parts"]) for trial in tuning["trials"])

    test = json.loads((ledger / "kl_min-seed1.json").read_text())
    assert test["params"] == tuning["best"]["params"]
    tree = yaml.safe_load(config.read_text())
    run = load_config(Path(tree["out"]) / tree["name"] / "kl_min" / "seed1" / "config.yaml", schemas=plugin_schemas())
    assert (run.data.partition, run.seed, run.optim.steps) == ("test", 1, test["params"]["optim.steps"])
    trial = load_config(Path(tree["out"]) / tree["name"] / "tuning" / "kl_min" / "trial_000" / "config.yaml", schemas=plugin_schemas())
    assert trial.data.partition == "validation"
    assert test["cost"]["attack_cpu_seconds"] > 0
    assert 0 <= test["axes"]["robustness"] <= 1
    means = {key: sum(found.values()) / len(found) for key, found in test["entities"].items()}
    assert means == pytest.approx({key: test["results"][key] for key in means})

    clone = tmp_path / "clone"
    shutil.copytree(ledger, clone)
    before = {path.name: path.read_bytes() for path in clone.rglob("*.json")}
    shutil.rmtree(tree["out"])
    go(config, clone, words=(f"out={tmp_path / 'elsewhere'}",), out=tmp_path / "clone.md")
    assert {path.name: path.read_bytes() for path in clone.rglob("*.json")} == before
    assert not (tmp_path / "elsewhere").exists()
    assert "| kl_min (reference) |" in (tmp_path / "clone.md").read_text(encoding="utf-8")  # from the ledger alone


def test_too_few_rows_are_said_before_anything_is_made(config: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(config.read_text())
    make_mini(tmp_path)  # without the further people
    with pytest.raises(DataError, match=r"needs 5 retain entities .*; found 4 of 4"):
        go(config, tmp_path / "ledger")
    assert not Path(tree["out"]).exists()


def test_one_that_fails(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No finite weights are left at such a learning rate."""
    tree = yaml.safe_load(config.read_text())
    tree["spaces"] = {"gradient_ascent": {"optim.lr": {"choices": [1e30]}}}
    config.write_text(yaml.safe_dump(tree))
    with pytest.raises(typer.Exit) as exit_info:
        go(config, tmp_path / "ledger", "none,gradient_ascent,kl_min", trials=1, seeds="1")
    assert exit_info.value.exit_code == 2
    summary = json.loads((tmp_path / "ledger" / "summary.json").read_text())
    assert set(summary["methods"]) == {"none", "kl_min"}
    assert summary["progress"]["to_tune"] == ["gradient_ascent"]
    said = capsys.readouterr().err
    assert "gradient_ascent, tuning:" in said
