"""Training does not wait for the store, and nothing is lost for it: values arrive late, again or at the end of the process."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from tests.forks import ended, forked
from tests.tracking.stores import client, eventually, history, new_store, one_warning, status
from tests.tracking.test_logger import Line, loader, trainer
from unlearn.config.schema import TrackingConfig
from unlearn.tracking import courier as courier_module
from unlearn.tracking import mlflow as tracking
from unlearn.tracking.courier import Courier
from unlearn.tracking.logger import RunDirLogger
from unlearn.tracking.mlflow import make_mlflow_logger
from unlearn.tracking.reader import read_run
from unlearn.tracking.rundir import RunDirectory


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return new_store(tmp_path_factory.mktemp("asynchronous") / "mlflow.db")


@pytest.fixture
def logger(uri):
    return make_mlflow_logger(TrackingConfig(uri=uri), "a", {"x": 1})


def instead(monkeypatch, logger, replacement):
    """Put ``replacement(send, *args, **words)`` in the place of the client's way to send values."""
    send = logger.experiment.log_batch
    monkeypatch.setattr(logger.experiment, "log_batch", lambda *args, **words: replacement(send, *args, **words))


def test_nobody_waits_for_a_store_that_takes_its_time(uri, logger, monkeypatch):
    monkeypatch.setattr(tracking, "BATCH", 10)
    going, calls = threading.Event(), []

    def slow(send, *args, **words):
        calls.append(len(words["metrics"]))
        assert going.wait(200)
        send(*args, **words)

    instead(monkeypatch, logger, slow)
    for step in range(200):  # would not end, had a call waited for the store
        logger.log_metrics({"a": float(step)}, step)
    assert len(calls) <= 1
    assert history(uri, logger.run_id, "a") == []
    going.set()
    logger.finalize("success")
    assert calls == [10] * 20
    assert history(uri, logger.run_id, "a") == [(step, float(step)) for step in range(200)]


def test_a_hanging_store_holds_up_a_run_for_a_bounded_time_and_nothing_is_sent_twice(uri, logger, monkeypatch):
    monkeypatch.setattr(tracking, "STALL_S", 0.3)
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.5)
    going, answered = threading.Event(), []

    def hang(send, *args, **words):
        going.wait(600)
        answered.append(1)
        send(*args, **words)

    instead(monkeypatch, logger, hang)
    logger.log_metrics({"a": 1.0}, 0)
    with one_warning():
        logger.finalize("success")
        logger.finalize("success")
    assert not answered  # nobody has waited for that
    assert not logger.reached
    going.set()
    eventually(lambda: status(uri, logger.run_id) == "FINISHED")
    assert history(uri, logger.run_id, "a") == [(0, 1.0)]


def test_a_batch_that_fails_is_sent_again(uri, logger, monkeypatch):
    monkeypatch.setattr(tracking, "BATCH", 10)
    monkeypatch.setattr(tracking, "PAUSE_S", 0.0)
    calls = []

    def twice_bad(send, *args, **words):
        calls.append(1)
        if len(calls) in (2, 5):
            raise OSError("no route")
        send(*args, **words)
        if len(calls) == 6:
            raise OSError("the answer got lost")

    instead(monkeypatch, logger, twice_bad)
    with one_warning():
        for step in range(95):
            logger.log_metrics({"a": float(step)}, step)
            time.sleep(0.002)
        logger.finalize("success")
    assert history(uri, logger.run_id, "a") == [(step, float(step)) for step in range(95)]
    assert status(uri, logger.run_id) == "FINISHED"
    assert logger.reached


def test_a_store_that_nobody_waits_for_any_more_may_come_back(uri, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.05)
    monkeypatch.setattr(tracking, "PAUSE_S", 0.0)
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.1)
    logger = make_mlflow_logger(TrackingConfig(uri=uri), "a", {})
    away = [True]

    def perhaps(send, *args, **words):
        if away:
            time.sleep(0.2)
            raise OSError("no route")
        send(*args, **words)

    instead(monkeypatch, logger, perhaps)
    logger.log_metrics({"a": 0.0}, 0)
    with one_warning():
        assert not logger.flush(force=True)
    assert not logger.reached
    for step in range(1, 5):
        logger.log_metrics({"a": float(step)}, step)
    away.clear()
    eventually(lambda: logger.reached)
    logger.finalize("success")
    assert history(uri, logger.run_id, "a") == [(step, float(step)) for step in range(5)]
    assert status(uri, logger.run_id) == "FINISHED"


def test_the_last_call_is_tried_again(uri, logger, monkeypatch):
    monkeypatch.setattr(tracking, "LAST_PAUSE_S", 0.0)
    end, calls = logger.experiment.set_terminated, []

    def once_bad(*args):
        calls.append(1)
        if len(calls) == 1:
            raise OSError("database is locked")
        end(*args)

    monkeypatch.setattr(logger.experiment, "set_terminated", once_bad)
    with one_warning():
        logger.finalize("success")
    assert status(uri, logger.run_id) == "FINISHED"


SCRIPT = """
import os, sys
from pathlib import Path
from unlearn.config.schema import TrackingConfig
from unlearn.tracking.mlflow import make_mlflow_logger
import mlflow
ends = (lambda: None, lambda: 1 / 0, lambda: sys.exit(3))
pids = []
for number, end in enumerate(ends):
    pids.append(os.fork())
    if not pids[-1]:
        logger = make_mlflow_logger(TrackingConfig(uri=sys.argv[1]), "a", {"x": 1})
        Path(sys.argv[2], str(number)).write_text(logger.run_id)
        for step in range(100):
            logger.log_metrics({"a": step, "b": 1.0}, step)
        end()
        sys.exit()
print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


@pytest.mark.slow
def test_the_end_of_the_process_sends_what_waits_and_closes_the_run(uri, tmp_path):
    """Three processes at once, which share their imports: one that just ends, one that breaks, one that leaves."""
    command = (sys.executable, "-c", SCRIPT, uri, str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.split() == ["0", "1", "3"], done.stderr
    for number in range(3):
        run_id = (tmp_path / str(number)).read_text()
        assert len(history(uri, run_id, "a")) == len(history(uri, run_id, "b")) == 100, done.stderr
        assert status(uri, run_id) == "FAILED"
        assert client(uri).get_run(run_id).data.params == {"x": "1"}


class Killed(Line):
    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 40:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_run_has_every_row_on_disk(uri, tmp_path):
    def work():
        run = RunDirectory.create(tmp_path, "a")
        made = trainer([RunDirLogger(run), make_mlflow_logger(TrackingConfig(uri=uri), "a", {})], steps=60)
        made.log_every_n_steps = 1
        made.fit(Killed(), loader())

    assert ended(forked(work, tmp_path / "said")) == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert read_run(tmp_path / "a").series("train/loss")[0] == list(range(40))


def test_a_courier_does_one_job_after_another_and_passes_errors_on():
    done = []
    courier = Courier(lambda: done.append("urgent"), lambda: done.append("idle"), lambda: 0.05)
    assert courier.ask(lambda: done.append(1) is None, 5.0)
    for error in (ValueError("no"), TimeoutError("the store's own")):
        future = Future()
        future.set_exception(error)
        with pytest.raises(type(error), match=str(error)):
            courier.ask(future.result, 5.0)
    courier.tell()
    assert courier.ask(lambda: True, 5.0)
    assert "urgent" in done
    eventually(lambda: "idle" in done)
    courier.stop()
    assert courier.ask(lambda: True, 5.0)  # a stopped one starts again
    courier.stop()


def test_a_courier_waits_as_long_as_something_moves(monkeypatch):
    """By a clock that goes only when the jobs say so."""
    now = [0.0]
    monkeypatch.setattr(courier_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    courier, stuck = Courier(lambda: None, lambda: None, lambda: 5.0), threading.Event()

    def long_work():
        for _ in range(10):
            now[0] += 0.4
            time.sleep(2 * courier_module.LOOK_S)  # whoever waits looks at the clock meanwhile
            courier.moved()
        return True

    def hang():
        now[0] += 0.4
        return stuck.wait(600)

    assert courier.ask(long_work, 0.5)
    with pytest.raises(TimeoutError, match="no answer for 0.2 s"):
        courier.ask(hang, 0.2)
    stuck.set()
    courier.stop()
