"""The main job on the embedded world, as `make quickstart` does it: what it must show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.stores import new_store
from unlearn.cli import main
from unlearn.tracking.reader import read_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RUNS = ("base", "gradient_ascent", "grad_diff", "sae_prototype", "sae_distribution", "sae_erase")


@pytest.fixture(scope="module")
def study(world_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study on the world that the test session shares."""
    folder = tmp_path_factory.mktemp("quickstart")
    words = [
        f"out={folder}",
        f"cache={world_cache}",
        f"tracking.uri={new_store(folder / 'mlflow.db')}",
        "trainer.progress_bar=false",
        "trainer.threads=1",
    ]
    with pytest.raises(SystemExit) as ending:
        main(["run", str(ROOT / "configs" / "quickstart.yaml"), *words])
    assert not ending.value.code
    with pytest.raises(SystemExit) as ending:
        main(["compare", str(folder / "quickstart"), "--out", str(folder / "quickstart" / "report.html")])
    assert not ending.value.code
    return folder / "quickstart"


@pytest.fixture(scope="module")
def results(study: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads((study / name / "results.json").read_text(encoding="utf-8")) for name in RUNS}


def test_the_original_model_knows_what_it_should(results: dict[str, dict[str, Any]]) -> None:
    base = results["base"]
    assert base["forget/accuracy"] >= 0.99
    assert base["retain/accuracy"] >= 0.99
    assert base["unknown/refusal_rate"] >= 0.95
    assert base["latent/best_unknown_separation"] >= 0.4
    assert base["latent/probe_auc"] >= 0.95
    assert base["collapse/flag"] == 0


def test_matching_the_distribution_forgets_and_keeps(results: dict[str, dict[str, Any]]) -> None:
    found = results["sae_distribution"]
    assert found["forget/accuracy"] <= 0.02
    assert found["forget/accuracy_paraphrased"] <= 0.05
    assert found["retain/accuracy"] >= 0.97
    assert found["retain/accuracy_unseen"] >= 0.95
    assert found["generic/perplexity"] <= 1.03 * found["generic/perplexity_base"]
    assert found["latent/c2st_null_low"] <= found["latent/c2st_auc"] <= found["latent/c2st_null_high"]
    assert found["latent/p_unknown"] >= 0.95
    assert found["collapse/flag"] == 0


def test_erasing_forgets_and_keeps(results: dict[str, dict[str, Any]]) -> None:
    found = results["sae_erase"]
    assert found["forget/accuracy"] <= 0.02
    assert found["forget/accuracy_paraphrased"] <= 0.02
    assert found["retain/accuracy"] >= 0.98
    assert found["retain/accuracy_unseen"] >= 0.98
    assert found["generic/perplexity"] <= 1.01 * found["generic/perplexity_base"]
    assert found["latent/c2st_null_low"] <= found["latent/c2st_auc"] <= found["latent/c2st_null_high"]
    assert found["latent/p_unknown"] >= 0.95
    assert found["collapse/flag"] == 0


def test_pulling_to_the_mean_forgets_but_is_told_apart(results: dict[str, dict[str, Any]]) -> None:
    found = results["sae_prototype"]
    assert found["forget/accuracy"] <= 0.05
    assert found["latent/c2st_auc"] > found["latent/c2st_null_high"]


def test_gradient_ascent_collapses_and_says_so(results: dict[str, dict[str, Any]]) -> None:
    found = results["gradient_ascent"]
    assert found["retain/accuracy"] <= 0.5 or found["generic/perplexity"] > 1.5 * found["generic/perplexity_base"]
    assert found["collapse/flag"] == 1
    assert found["collapse/reason"]


def test_every_run_finished_and_the_report_holds_them_all(study: Path, results: dict[str, dict[str, Any]]) -> None:
    page = (study / "report.html").read_text(encoding="utf-8")
    for name in RUNS:
        assert read_run(study / name).status["state"] == "finished"
        assert name in page
    assert "http-equiv" in page
    assert "<script" not in page


def test_mlflow_has_the_study_with_its_runs_and_its_report(study: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{study.parent}/mlflow.db")
    found = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("unlearn").experiment_id])}
    assert set(found) == {"quickstart", *RUNS}
    parent = found["quickstart"].info.run_id
    assert {found[name].data.tags["mlflow.parentRunId"] for name in RUNS} == {parent}
    assert {found[name].data.tags["study"] for name in found} == {"quickstart"}
    assert {"report.html", "figures"} <= {item.path for item in client.list_artifacts(parent)}
    assert "figures/front.png" in {item.path for item in client.list_artifacts(parent, "figures")}
    assert all("forget/accuracy" in found[name].data.metrics for name in RUNS)
