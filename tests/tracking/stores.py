"""Asking a tracking store what it holds."""

import socket
import warnings
from contextlib import contextmanager


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
