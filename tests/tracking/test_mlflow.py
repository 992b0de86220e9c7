import threading
import time
import warnings

import pytest

from tests.forks import free_port
from tests.tracking.stores import client, eventually, history, status
from tests.tracking.test_logger import Line, loader, trainer
from unlearn.config.schema import TrackingConfig
from unlearn.tracking import mlflow as tracking
from unlearn.tracking.logger import RunDirLogger
from unlearn.tracking.mlflow import make_mlflow_logger
from unlearn.tracking.rundir import RunDirectory
from unlearn.tracking.store import knock, metric_name, public_uri

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def uri(folder, monkeypatch):
    """A real SQLite store, shared by the tests of this file."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return "sqlite:///mlflow.db"


def test_off_means_none():
    assert make_mlflow_logger(TrackingConfig(enabled=False), "a", {}) is None


def test_a_trainer_with_both_loggers(uri, tmp_path):
    run = RunDirectory.create(tmp_path, "study/npo")
    long = "x" * 9000
    params = {"method.beta": 0.1, "method.name": "npo", "weird[0]@key": 1, "long": long, **{f"p{i}": i for i in range(230)}}
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="trainer"), "study/npo", params, {"source": "world"})
    trainer([RunDirLogger(run), logger]).fit(Line(), loader())
    assert status(uri, logger.run_id) == "FINISHED"
    stored = client(uri).get_run(logger.run_id)
    assert stored.info.run_name == "study/npo"
    assert stored.data.tags["source"] == "world"
    assert stored.data.params["method.beta"] == "0.1"
    assert stored.data.params["weird_0_.key"] == "1"
    assert stored.data.params["p229"] == "229"
    assert long.startswith(stored.data.params["long"])
    assert [step for step, _ in history(uri, logger.run_id, "train/loss")] == [1, 3, 5]
    assert "epoch" not in stored.data.metrics

    # results come after fit: the run is going again until it is finalised once more
    logger.log_metrics({"forget/accuracy": 0.0, "latent/c2st_auc@layer3": 0.5, "collapse/reason": "none", "bad": float("nan")}, 6)
    assert status(uri, logger.run_id) == "RUNNING"
    run.write_results({"forget/accuracy": 0.0})
    (run.plots / "a.svg").write_text("<svg/>")
    logger.log_artifacts(run.artifacts())
    logger.finalize("finished")
    stored = client(uri).get_run(logger.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics["latent/c2st_auc.layer3"] == 0.5
    assert "collapse/reason" not in stored.data.metrics
    names = {item.path for item in client(uri).list_artifacts(logger.run_id)}
    assert {"metrics.jsonl", "results.json", "status", "a.svg"} <= names


@pytest.mark.parametrize(
    ("word", "ending"),
    [("finished", "FINISHED"), ("stopped", "FINISHED"), ("failed", "FAILED"), ("killed", "KILLED"), ("odd", "FAILED")],
)
def test_endings(uri, word, ending):
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="endings"), word, {})
    logger.log_metrics({"x": 1.0}, 0)
    logger.finalize(word)
    assert status(uri, logger.run_id) == ending
    assert history(uri, logger.run_id, "x") == [(0, 1.0)]


@pytest.mark.parametrize(("error", "ending"), [(ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_trainer_that_stops_halfway_sends_what_it_has(uri, error, ending):
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="halfway"), ending, {})
    with pytest.raises((ValueError, SystemExit)):
        trainer([logger]).fit(Line(fail_at=4, error=error), loader())
    assert status(uri, logger.run_id) == ending
    assert [step for step, _ in history(uri, logger.run_id, "train/loss")] == [1, 3]


def test_a_continued_run_gets_no_step_twice(uri):
    config = TrackingConfig(uri=uri, experiment="continued")
    first = make_mlflow_logger(config, "a", {"lr": 0.1, "devices": 1})
    for step in (0, 10, 20):
        first.log_metrics({"loss": 1.0 / (step + 1)}, step)
    first.finalize("killed")
    time.sleep(0.01)

    again = make_mlflow_logger(config, "a", {"lr": 0.1, "devices": 2, "new": 1}, run_id=first.run_id)
    assert again.run_id == first.run_id
    assert status(uri, again.run_id) == "RUNNING"
    for step in (10, 20, 30):
        again.log_metrics({"loss": 1.0 / (step + 1), "latent/mmd": 0.5}, step)
    again.finalize("success")
    assert [step for step, _ in history(uri, again.run_id, "loss")] == [0, 10, 20, 30]
    assert [step for step, _ in history(uri, again.run_id, "latent/mmd")] == [10, 20, 30]
    stored = client(uri).get_run(again.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"lr": "0.1", "devices": "1", "new": "1"}
    assert len(client(uri).search_runs([stored.info.experiment_id])) == 1


def test_an_id_the_store_does_not_know_starts_a_new_run(uri):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="lost"), "a", {}, run_id="0" * 32)
    assert logger.run_id != "0" * 32
    assert status(uri, logger.run_id) == "RUNNING"
    logger.finalize("finished")


def test_a_parameter_is_said_once(uri):
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="params"), "a", {"lr": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        logger.log_hyperparams({"lr": 0.2, "beta": 1})
    logger.finalize("finished")
    assert client(uri).get_run(logger.run_id).data.params == {"lr": "0.1", "beta": "1"}


def test_the_environment_names_the_store(uri, folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert make_mlflow_logger(TrackingConfig(experiment="env"), "a", {}).uri == "sqlite:///mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    logger = make_mlflow_logger(TrackingConfig(experiment="env"), "a", {})
    assert logger.uri == "sqlite:///mlflow.db"
    assert (folder / "mlflow.db").is_file()
    logger.finalize("finished")


def test_values_go_in_batches(uri, monkeypatch):
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="batches"), "a", {})
    monkeypatch.setattr(tracking, "FLUSH_S", 1e9)
    calls = []
    send = logger.experiment.log_batch
    monkeypatch.setattr(logger.experiment, "log_batch", lambda *args, **words: (calls.append(len(words["metrics"])), send(*args, **words)))
    for step in range(300):
        logger.log_metrics({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, step)
        logger.save()
    logger.finalize("success")
    assert calls == [500, 500, 200]
    assert len(history(uri, logger.run_id, "d")) == 300


def test_waiting_values_are_sent_after_a_while(uri, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.05)
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="while"), "a", {})
    send, going = logger.experiment.log_batch, threading.Event()
    monkeypatch.setattr(logger.experiment, "log_batch", lambda *args, **words: going.wait(600) and send(*args, **words))
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_metrics({"a": 2.0}, 1)
    assert history(uri, logger.run_id, "a") == []
    going.set()  # and nobody asks for them
    eventually(lambda: history(uri, logger.run_id, "a") == [(0, 1.0), (1, 2.0)])
    logger.finalize("finished")


def test_the_thread_that_logs_never_talks_to_the_store(uri, monkeypatch):
    """Every call of the store comes from another thread, in full batches but for the last; what that costs: experiments/reliability."""
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="cheap"), "a", {})
    monkeypatch.setattr(tracking, "FLUSH_S", 1e9)
    send, calls = logger.experiment.log_batch, []

    def seen(*args, **words):
        calls.append((threading.get_ident(), len(words["metrics"])))
        send(*args, **words)

    monkeypatch.setattr(logger.experiment, "log_batch", seen)
    for step in range(120):
        logger.log_metrics({f"k{i}": 1.0 for i in range(10)}, step)
    logger.finalize("finished")
    assert threading.get_ident() not in {thread for thread, _ in calls}
    assert [n for _, n in calls] == [500, 500, 200]


def test_metric_names_are_taken_by_the_store(uri):
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="names"), "a", {})
    keys = ["a/b", "a//b//", "../../etc", "å ö", "a:b", "loss@layer3", "x" * 400, "@", "/", "."]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        logger.log_metrics(dict.fromkeys(keys, 1.0), 0)
        logger.finalize("finished")
    assert set(client(uri).get_run(logger.run_id).data.metrics) == {metric_name(key) for key in keys}


def test_addresses():
    assert public_uri("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
    assert public_uri("postgresql+psycopg2://me:p@ss@db:5432/x") == "postgresql+psycopg2://db:5432/x"
    knock("sqlite://", 1)
    knock("http://127.0.0.1:1", 1)
    with pytest.raises(OSError, match="refused"):
        knock(f"mysql+pymysql://127.0.0.1:{free_port()}/x", 1)
