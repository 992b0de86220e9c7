"""Stores that are not there, go away, come back or are made by two runs at once."""

import os
import socket
import sqlite3
import threading
import warnings

import pytest

from tests.forks import ended, forked, free_port
from tests.tracking.stores import client, connections, engines, history, new_store, one_warning, status
from tests.tracking.test_logger import Line, loader, trainer
from unlearn.config.schema import TrackingConfig
from unlearn.tracking import mlflow as tracking
from unlearn.tracking.courier import Courier
from unlearn.tracking.logger import RunDirLogger
from unlearn.tracking.mlflow import make_mlflow_logger
from unlearn.tracking.rundir import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def test_a_store_that_is_away_from_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "PAUSE_S", 1e9)
    monkeypatch.setattr(tracking, "PATIENCE_S", 1e9)
    run, tried = RunDirectory.create(tmp_path, "a"), connections(monkeypatch)
    with one_warning():
        logger = make_mlflow_logger(TrackingConfig(uri=f"http://127.0.0.1:{free_port()}"), "a", {"x": 1})
        model = Line()
        trainer([RunDirLogger(run), logger]).fit(model, loader())
        logger.log_metrics({"y": 1.0}, 1)
        logger.log_artifacts(run.artifacts())
        logger.experiment.log_text("nobody listens", "a.txt")
        logger.finalize("finished")
    assert len(tried) == 4  # at the start, when training ends, with the files and at the end, once each; never for the values
    assert logger.run_id is None
    assert not logger.reached
    assert model.global_step == 6
    assert run.metrics_path.is_file()


def test_a_store_that_never_answers_costs_a_bounded_time(monkeypatch):
    """A request ends after its second; whoever logs waits for one or two of them, and for none when its patience is used up."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "PATIENCE_S", 1.5)
    monkeypatch.setattr(tracking, "PAUSE_S", 0.0)
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    ask, waits = Courier.ask, []

    def seen(courier, job, patience_s):
        waits.append(patience_s)
        return ask(courier, job, patience_s)

    monkeypatch.setattr(Courier, "ask", seen)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1024)
        with one_warning():
            logger = make_mlflow_logger(TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"), "a", {})
            assert len(waits) == 1
            for step in range(50):
                logger.log_metrics({"x": 1.0}, step)
            assert len(waits) == 1
            logger.finalize("success")
            for _ in range(20):
                assert not logger.flush(force=True)
    assert len(waits) <= 2
    assert not logger.reached


def test_a_database_server_that_is_away_is_noticed_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:secret@127.0.0.1:{free_port()}/mlflow")
    asked = engines(monkeypatch)
    with one_warning():
        logger = make_mlflow_logger(TrackingConfig(), "a", {})
        logger.finalize("success")
    assert asked == []
    assert logger.run_id is None


@pytest.mark.parametrize(("content", "name"), [(b"no database at all" * 99, "x.db"), (b"", "x.db/below/y.db")])
def test_a_file_that_is_no_store_is_noticed_at_once(tmp_path, content, name, monkeypatch):
    (tmp_path / "x.db").write_bytes(content)
    good, asked = new_store(tmp_path / "good.db"), engines(monkeypatch)
    with one_warning():
        make_mlflow_logger(TrackingConfig(uri=f"sqlite:///{tmp_path / name}"), "a", {}).finalize("success")
    assert asked == []
    make_mlflow_logger(TrackingConfig(uri=good), "a", {}).finalize("success")
    assert asked == [good]  # a store that is there is asked that way


def test_no_password_in_the_warning(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    with pytest.warns(RuntimeWarning) as caught:
        make_mlflow_logger(TrackingConfig(), "a", {})
    assert all("secret" not in str(w.message) for w in caught)


class Server:
    """MLflow's own server, in a thread of this process, so that it can be taken away and brought back."""

    def __init__(self, folder):
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = new_store(folder / "server.db")
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = str(folder / "artifacts")
        os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        self.port = free_port()

    def start(self):
        from mlflow.server import app
        from werkzeug.serving import make_server

        # the first answer takes a while: the server opens its store
        assert app.test_client().post("/api/2.0/mlflow/experiments/search", json={"max_results": 1}).status_code == 200
        self.inner = make_server("127.0.0.1", self.port, app, threaded=False)
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
    monkeypatch.setattr(tracking, "PAUSE_S", 1e9)
    logger = make_mlflow_logger(TrackingConfig(uri=address), "a", {"x": 1})
    logger.log_metrics({"loss": 3.0}, 0)
    server.stop()
    tried = connections(monkeypatch)
    with one_warning():
        for step in range(1, 200):
            logger.log_metrics({"loss": 2.0}, step)
        assert logger.flush(force=True) is False
    assert len(tried) <= 2  # of its own accord, and when it is told to
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
    import mlflow  # noqa: F401  (once for both)

    def work(name):
        warnings.simplefilter("error", RuntimeWarning)
        logger = make_mlflow_logger(TrackingConfig(uri=f"sqlite:///{tmp_path}/new.db"), name, {"a": 1})
        logger.log_metrics({"x": 1.0}, 0)
        logger.finalize("success")

    pids = [forked(lambda name=name: work(name), tmp_path / name) for name in "ab"]
    assert [ended(pid) for pid in pids] == [0, 0], [(tmp_path / name).read_text() for name in "ab"]
    with sqlite3.connect(tmp_path / "new.db") as store:
        assert store.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (2,)
