"""One configuration, many methods and seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.mini import make_mini
from unlearn.cli.matrix import chosen, compare, expand, seeds_of
from unlearn.errors import ConfigError
from unlearn.registry import entries


def test_sets_of_methods() -> None:
    everything = chosen("all")
    assert everything[0] == "none"
    assert set(everything) == set(entries("method")) - {"gold"}
    trained, acting = set(chosen("trained")), set(chosen("interventions"))
    assert trained | acting == set(everything)
    assert trained & acting == {"none"}
    assert chosen("npo, grad_diff" if "npo" in everything else "grad_diff")[-1] == "grad_diff"
    with pytest.raises(ConfigError, match=r"--methods must be all, trained, .*found 'grad_dif'.*grad_diff"):
        chosen("grad_dif")


def test_seeds() -> None:
    assert seeds_of("0-2,7") == [0, 1, 2, 7]
    with pytest.raises(ConfigError, match=r"--seeds must be whole numbers such as 0,1,2 or 0-2; found 'x'"):
        seeds_of("x")


@pytest.fixture
def mini(tmp_path: Path) -> dict[str, Any]:
    return make_mini(tmp_path)


def test_methods_times_seeds_are_run_once_and_summarised(
    mini: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mini.yaml"
    file.write_text(yaml.safe_dump(mini))
    words = [str(file), "optim.steps=2", "tracking.enabled=false"]
    configs = expand(words, "none,gradient_ascent", "0,1")
    assert [c.name for c in configs] == [f"{mini['name']}/{m}/seed{k}" for m in ("none", "gradient_ascent") for k in (0, 1)]
    assert [c.seed for c in configs] == [0, 1, 0, 1]
    compare(words, "none,gradient_ascent", "0,1", None)
    folder = Path(str(mini["out"])) / str(mini["name"])
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {"none", "gradient_ascent"}
    assert summary["gradient_ascent"]["forget/probability"]["n"] == 2
    assert "cost/train_cpu_seconds" in summary["gradient_ascent"]
    assert "gradient_ascent" in capsys.readouterr().out
    results = folder / "gradient_ascent" / "seed0" / "results.json"
    before = results.stat().st_mtime_ns
    compare(words, "none,gradient_ascent", "0,1", None)
    assert results.stat().st_mtime_ns == before


def test_methods_do_not_go_into_a_study_that_names_its_own(tmp_path: Path) -> None:
    study = tmp_path / "s.yaml"
    study.write_text("study: s\nruns: {a: {}}\n")
    with pytest.raises(ConfigError, match=r"--methods takes a configuration of one run, whose method it replaces; found a study in "):
        expand([str(study)], "all", None)


def test_gold_adds_its_row_and_is_what_the_others_are_measured_against(mini: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mini.yaml"
    file.write_text(yaml.safe_dump(mini))
    runs = expand([str(file)], "none,gradient_ascent", "0", gold=True)
    assert [run.method.name for run in runs] == ["gold", "none", "gradient_ascent"]
    assert {run.evaluation.gold for run in runs} == {"source"}
    assert runs[0].name == f"{mini['name']}/gold/seed0"
