import json

import pytest

from unlearn.errors import RunError
from unlearn.tracking.reader import find_runs, read_run, read_runs
from unlearn.tracking.rundir import RunDirectory


def test_a_full_run_is_read_back(tmp_path):
    run = RunDirectory.create(tmp_path, "study/npo")
    run.write_config("name: study/npo\nmethod:\n  name: npo\n  beta: 5e-1\noptim:\n  lr: 1e-4\n")
    run.append_metrics(10, "train", {"loss": 1.0})
    run.append_metrics(0, "train", {"loss": 2.0, "note": "a text"})
    run.append_samples([{"set": "forget", "prompt": "Where?", "reference": "Oslo", "before": "Oslo", "after": "Unknown"}])
    run.write_results({"forget/accuracy": 0.25, "collapse/reason": "", "latent/mmd": float("nan"), "generic/perplexity": float("inf")})
    run.set_status("finished")
    record = read_run(run.path)
    assert (record.name, record.method, record.status["state"]) == ("study/npo", "npo", "finished")
    assert record.config["optim"]["lr"] == 1e-4
    assert record.series("loss") == ([0, 10], [2.0, 1.0])
    assert record.series("note") == ([], [])
    assert record.number("forget/accuracy") == 0.25
    assert record.number("generic/perplexity") == float("inf")
    assert record.number("collapse/reason") is None
    assert record.number("latent/mmd") is None
    assert record.number("none") is None
    assert record.samples[0]["after"] == "Unknown"
    assert record.activations is None


def test_only_a_status_is_enough(tmp_path):
    record = read_run(RunDirectory.create(tmp_path, "bare").path)
    assert (record.name, record.method, record.config, record.results, record.metrics) == ("bare", "", {}, {}, [])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "plain", "a: ${b\n", ""])
def test_a_damaged_configuration_is_an_empty_one(tmp_path, text):
    run = RunDirectory.create(tmp_path, "a")
    run.write_config(text)
    run.results_path.write_text('{"a": ')
    record = read_run(run.path)
    assert record.results == {}
    assert record.method == ""


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    for step, value in [(0, 3.0), (10, 2.0), (20, 1.5), (10, 2.1), (20, 1.6), (30, 1.0)]:
        run.append_metrics(step, "train", {"loss": value})
    run.append_samples([{"set": "forget", "prompt": "p", "after": "x"}])
    run.append_samples([{"set": "forget", "prompt": "p", "after": "y"}])
    record = read_run(run.path)
    assert record.series("loss") == ([0, 10, 20, 30], [3.0, 2.1, 1.6, 1.0])
    assert [row["after"] for row in record.samples] == ["y"]


def test_rows_without_their_fields_are_left_out(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    rows = [
        {"step": 1, "key": "loss", "value": "inf"},
        {"step": "x", "key": "k", "value": 1},
        {"key": "k"},
        {"step": None, "key": "k", "value": 1},
    ]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "3\n")
    assert read_run(run.path).metrics == [{"step": 1, "stage": "", "key": "loss", "value": float("inf")}]


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match="must be the folder of a run"):
        read_run(tmp_path)


def test_find_runs_takes_studies_and_runs(tmp_path):
    a, b = (RunDirectory.create(tmp_path, name).path for name in ("study/b", "study/a"))
    other = RunDirectory.create(tmp_path, "other").path
    assert find_runs(tmp_path / "study") == [b, a]
    assert find_runs(other) == [other]
    assert [record.name for record in read_runs([other, tmp_path / "study", a])] == ["other", "a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty must be a run or a folder of runs; found none in it"):
        find_runs(tmp_path / "empty")
    with pytest.raises(RunError, match="found no such folder"):
        read_runs([tmp_path / "missing"])
