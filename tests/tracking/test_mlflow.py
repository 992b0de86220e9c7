import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager

import pytest

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


def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def history(uri, run_id, key):
    return [(metric.step, metric.value) for metric in client(uri).get_metric_history(run_id, key)]


def status(uri, run_id):
    return client(uri).get_run(run_id).info.status


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [str(w.message) for w in caught if "MLflow store" in str(w.message)]
    assert len(ours) == 1
    assert "the run goes on" in ours[0]


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
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="while"), "a", {})
    logger.log_metrics({"a": 1.0}, 0)
    assert history(uri, logger.run_id, "a") == []
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    logger.log_metrics({"a": 2.0}, 1)
    assert history(uri, logger.run_id, "a") == [(0, 1.0), (1, 2.0)]
    logger.finalize("finished")


def test_logging_a_step_costs_little(uri):
    """Against some 70 ms of the smallest training step."""
    logger = make_mlflow_logger(TrackingConfig(uri=uri, experiment="cheap"), "a", {})
    started = time.perf_counter()
    for step in range(500):
        logger.log_metrics({f"k{i}": 1.0 for i in range(10)}, step)
    logger.finalize("finished")
    assert (time.perf_counter() - started) / 500 < 0.01


def test_a_store_that_is_away_from_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(tmp_path, "a")
    started = time.monotonic()
    with one_warning():
        logger = make_mlflow_logger(TrackingConfig(uri=f"http://127.0.0.1:{closed_port()}"), "a", {"x": 1})
        model = Line()
        trainer([RunDirLogger(run), logger]).fit(model, loader())
        logger.log_metrics({"y": 1.0}, 1)
        logger.log_artifacts(run.artifacts())
        logger.experiment.log_text("nobody listens", "a.txt")
        logger.finalize("finished")
    assert time.monotonic() - started < 8
    assert logger.run_id is None
    assert not logger.reached
    assert model.global_step == 6
    assert run.metrics_path.is_file()


def test_a_store_that_never_answers_costs_a_bounded_time(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "PATIENCE_S", 1.5)
    monkeypatch.setattr(tracking, "PAUSE_S", 0.0)
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        started = time.monotonic()
        with one_warning():
            logger = make_mlflow_logger(TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"), "a", {})
            for step in range(50):
                logger.log_metrics({"x": 1.0}, step)
            logger.finalize("success")
        assert time.monotonic() - started < 1.5 + 2 * 1.0 + 1.5


def test_a_database_server_that_is_away_is_noticed_at_once():
    started = time.monotonic()
    with one_warning():
        logger = make_mlflow_logger(TrackingConfig(uri=f"postgresql://me:secret@127.0.0.1:{closed_port()}/mlflow"), "a", {})
        logger.finalize("success")
    assert time.monotonic() - started < 3
    assert logger.run_id is None


@pytest.mark.parametrize(("content", "name"), [(b"no database at all" * 99, "x.db"), (b"", "x.db/below/y.db")])
def test_a_file_that_is_no_store_is_noticed_at_once(tmp_path, content, name):
    (tmp_path / "x.db").write_bytes(content)
    started = time.monotonic()
    with one_warning():
        make_mlflow_logger(TrackingConfig(uri=f"sqlite:///{tmp_path / name}"), "a", {}).finalize("success")
    assert time.monotonic() - started < 3


def test_no_password_in_the_warning():
    with pytest.warns(RuntimeWarning) as caught:
        make_mlflow_logger(TrackingConfig(uri=f"http://me:secret@127.0.0.1:{closed_port()}"), "a", {})
    assert all("secret" not in str(w.message) for w in caught)


class Server:
    """MLflow's own server, in a thread of this process, so that it can be taken away and brought back."""

    def __init__(self, folder):
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/server.db"
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = str(folder / "artifacts")
        os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        self.port = 0

    def start(self):
        from mlflow.server import app
        from werkzeug.serving import make_server

        # the first answer takes seconds: the server makes its tables
        assert app.test_client().post("/api/2.0/mlflow/experiments/search", json={"max_results": 1}).status_code == 200
        self.inner = make_server("127.0.0.1", self.port, app, threaded=False)
        self.port = self.inner.port
        self.thread = threading.Thread(target=self.inner.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        self.inner.shutdown()
        self.inner.server_close()
        self.thread.join()


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("FILE_STORE", "ARTIFACT_ROOT", "ARTIFACT_DESTINATION", "SERVE_ARTIFACTS"):
        monkeypatch.setenv(f"_MLFLOW_SERVER_{name}", "")
    made = Server(tmp_path)
    made.start()
    yield made
    if made.thread.is_alive():
        made.stop()


@pytest.mark.slow
def test_a_store_that_goes_away_and_comes_back_misses_nothing(server, monkeypatch, tmp_path):
    address = f"http://127.0.0.1:{server.port}"
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    logger = make_mlflow_logger(TrackingConfig(uri=address), "a", {"x": 1})
    logger.log_metrics({"loss": 3.0}, 0)
    server.stop()
    with one_warning():
        started = time.monotonic()
        for step in range(1, 200):
            logger.log_metrics({"loss": 2.0}, step)
        assert logger.flush(force=True) is False
        assert time.monotonic() - started < 3
    server.start()
    (tmp_path / "results.json").write_text("{}")
    logger.log_artifacts([tmp_path / "results.json"])
    logger.finalize("success")
    assert status(address, logger.run_id) == "FINISHED"
    assert [step for step, _ in history(address, logger.run_id, "loss")] == list(range(200))
    assert [item.path for item in client(address).list_artifacts(logger.run_id)] == ["results.json"]


@pytest.mark.slow
def test_a_store_that_stays_away_does_not_stop_training(server, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    logger = make_mlflow_logger(TrackingConfig(uri=f"http://127.0.0.1:{server.port}"), "a", {})
    run = RunDirectory.create(tmp_path, "a")
    server.stop()
    with one_warning():
        trainer([RunDirLogger(run), logger]).fit(Line(), loader())
    assert len(run.metrics_path.read_text().splitlines()) == 6


@pytest.mark.slow
def test_runs_that_start_together_share_a_new_store(tmp_path):
    code = (
        "from unlearn.config.schema import TrackingConfig\n"
        "from unlearn.tracking.mlflow import make_mlflow_logger\n"
        "import sys, warnings; warnings.simplefilter('error', RuntimeWarning)\n"
        "logger = make_mlflow_logger(TrackingConfig(uri='sqlite:///new.db'), sys.argv[1], {'a': 1})\n"
        "logger.log_metrics({'x': 1.0}, 0); logger.finalize('success')\n"
    )
    runs = [subprocess.Popen((sys.executable, "-c", code, name), cwd=tmp_path, stderr=subprocess.PIPE, text=True) for name in "ab"]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    with sqlite3.connect(tmp_path / "new.db") as store:
        assert store.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (2,)


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
        knock(f"mysql+pymysql://127.0.0.1:{closed_port()}/x", 1)
