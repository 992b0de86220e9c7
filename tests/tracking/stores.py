"""Asking a tracking store what it holds, and how it is asked."""

import sqlite3
import time
import warnings
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import CACHE
from unlearn.tracking.files import alone, write_atomic


def new_store(file):
    """Address of a SQLite store that nobody has used. Making the tables takes MLflow dozens of transactions, so they are a copy; they are
    made once for each version of MLflow and kept in the cache."""
    kept = CACHE / "tests" / f"mlflow-{version('mlflow')}.db"
    if not kept.exists():
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        from unlearn.tracking.mlflow import quieten

        quieten()
        with alone(kept), TemporaryDirectory() as folder:
            if not kept.exists():
                SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts")
                with closing(sqlite3.connect(f"{folder}/mlflow.db")) as made:
                    write_atomic(kept, made.serialize())
    Path(file).write_bytes(kept.read_bytes())
    return f"sqlite:///{file}"


def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def history(uri, run_id, key):
    return [(metric.step, metric.value) for metric in client(uri).get_metric_history(run_id, key)]


def status(uri, run_id):
    return client(uri).get_run(run_id).info.status


def eventually(condition):
    """Wait until ``condition()``, which another thread brings about soon, however busy the machine is."""
    until = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def connections(monkeypatch):
    """Addresses of the HTTP connections that are tried from now on, one entry each."""
    from urllib3.util import connection

    return _calls(monkeypatch, connection, "create_connection")


def engines(monkeypatch):
    """Databases that are asked by way of SQLAlchemy from now on, whose attempts at one that is away take minutes."""
    from mlflow.store.db import utils

    return _calls(monkeypatch, utils, "create_sqlalchemy_engine_with_retry")


def _calls(monkeypatch, module, name):
    """First arguments of the calls of a function from now on."""
    made, original = [], getattr(module, name)

    def seen(first, *args, **words):
        made.append(first)
        return original(first, *args, **words)

    monkeypatch.setattr(module, name, seen)
    return made


@contextmanager
def one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [str(w.message) for w in caught if "MLflow store" in str(w.message)]
    assert len(ours) == 1
    assert "the run goes on" in ours[0]
