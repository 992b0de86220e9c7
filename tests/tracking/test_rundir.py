import json

import numpy as np
import pytest
import torch

from unlearn.errors import RunError
from unlearn.tracking.reader import read_run
from unlearn.tracking.rundir import STATES, RunDirectory, is_run, scalar


def test_create_lays_out_the_folder(tmp_path):
    run = RunDirectory.create(tmp_path, "study/npo")
    assert run.path == tmp_path / "study" / "npo"
    assert run.checkpoints.is_dir()
    assert run.plots.is_dir()
    assert json.loads(run.status_path.read_text())["state"] == "running"
    assert is_run(run.path)


@pytest.mark.parametrize("name", ["../other", "/etc/run", ".", "", "  ", "a/../../b", "a/.."])
def test_a_name_cannot_leave_out(tmp_path, name):
    with pytest.raises(RunError, match="must be a folder inside out"):
        RunDirectory.create(tmp_path / "runs", name)
    assert not (tmp_path / "other").exists()


def test_a_link_cannot_lead_out_either(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="must be a folder inside out"):
        RunDirectory.create(tmp_path / "runs", "link/x")


def test_a_run_that_exists_is_an_error_that_says_what_to_do(tmp_path):
    first = RunDirectory.create(tmp_path, "npo")
    first.write_results({"forget/accuracy": 0.5})
    with pytest.raises(RunError, match="found a run. Go on with it by --resume .*npo, replace it by --force, or take another name."):
        RunDirectory.create(tmp_path, "npo")
    assert read_run(first.path).results == {"forget/accuracy": 0.5}


def test_replace_deletes_a_run_but_nothing_else(tmp_path):
    RunDirectory.create(tmp_path, "npo").write_results({"a": 1})
    again = RunDirectory.create(tmp_path, "npo", exist="replace")
    assert not again.results_path.exists()

    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    (thesis / "status").write_text("draft")
    with pytest.raises(RunError, match="something else than a run"):
        RunDirectory.create(tmp_path, "thesis", exist="replace")
    assert (thesis / "chapter.txt").read_text() == "years of work"


def test_replace_does_not_delete_a_study(tmp_path):
    inner = RunDirectory.create(tmp_path, "study/npo")
    with pytest.raises(RunError, match="something else than a run"):
        RunDirectory.create(tmp_path, "study", exist="replace")
    assert inner.status_path.is_file()


def test_a_run_does_not_lie_inside_another(tmp_path):
    RunDirectory.create(tmp_path, "npo")
    with pytest.raises(RunError, match="must not lie inside another run"):
        RunDirectory.create(tmp_path, "npo/deep/er")


def test_create_takes_an_empty_folder_and_refuses_a_file_and_an_odd_mode(tmp_path):
    (tmp_path / "empty").mkdir()
    assert is_run(RunDirectory.create(tmp_path, "empty").path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="something else than a run"):
        RunDirectory.create(tmp_path, "file")
    with pytest.raises(RunError, match="folder that can be made"):
        RunDirectory.create(tmp_path, "file/below")
    with pytest.raises(RunError, match="exist must be one of error, replace; found 'replaec'. Did you mean 'replace'"):
        RunDirectory.create(tmp_path, "x", exist="replaec")


def test_open(tmp_path):
    with pytest.raises(RunError, match="found no such folder"):
        RunDirectory.open(tmp_path / "none")
    with pytest.raises(RunError, match="must be the folder of a run"):
        RunDirectory.open(tmp_path)
    made = RunDirectory.create(tmp_path, "a")
    assert RunDirectory.open(made.path).path == made.path


def test_results_merge_and_stay_strict_json(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    run.write_results({"b": np.float64(1.5), "a": torch.tensor(2.0), "flag": True, "generic/perplexity": float("inf")})
    merged = run.write_results({"b": 2, "collapse/reason": "repeats itself"})
    assert merged["b"] == 2
    stored = json.loads(run.results_path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored == {"a": 2.0, "b": 2, "collapse/reason": "repeats itself", "flag": 1, "generic/perplexity": "inf"}
    assert list(stored) == sorted(stored)
    assert read_run(run.path).results["generic/perplexity"] == float("inf")


def test_results_refuse_what_is_no_number_or_text(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    run.write_results({"x": 1})
    with pytest.raises(RunError, match=r"latent/mmd must be a number or a text; found Tensor of shape \(2,\)"):
        run.write_results({"y": 1, "latent/mmd": torch.zeros(2)})
    with pytest.raises(RunError, match="latent/mmd must be a number or a text; found list"):
        scalar("latent/mmd", [1])
    assert json.loads(run.results_path.read_text()) == {"x": 1}


def test_metrics_are_tidy_rows(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    run.append_metrics(0, "train", {"loss": torch.tensor(0.5), "latent/p_unknown": 0.25})
    run.append_metrics(10, "final", {"loss": float("nan")})
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert rows == [
        {"step": 0, "stage": "train", "key": "loss", "value": 0.5},
        {"step": 0, "stage": "train", "key": "latent/p_unknown", "value": 0.25},
        {"step": 10, "stage": "final", "key": "loss", "value": "nan"},
    ]


def test_status(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    for state in STATES:
        run.set_status(state, reason=f"because {state}")
        stored = json.loads(run.status_path.read_text())
        assert (stored["state"], stored["reason"]) == (state, f"because {state}")
    with pytest.raises(RunError, match="status must be one of running, .*; found 'finishd'. Did you mean 'finished'"):
        run.set_status("finishd")


def test_artifacts_are_the_small_files(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    run.write_config("name: a\n")
    run.write_activations(known_ND=np.zeros((2, 3)))
    (run.checkpoints / "last.ckpt").write_text("big")
    (run.plots / "p.svg").write_text("<svg/>")
    assert [p.name for p in run.artifacts()] == ["config.yaml", "status", "p.svg"]
    with np.load(run.activations_path) as stored:
        assert stored["known_ND"].dtype == np.float32
