"""MLflow: the values of a run in a tracking store, without letting the store stop or slow the run.

Lightning's ``MLFlowLogger`` makes the experiment and the run. Around it, values are sent in batches, a store that cannot be reached
costs a bounded time and one warning, and a continued run gets no step twice.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import DummyExperiment, Logger
from lightning.pytorch.loggers.mlflow import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from unlearn.config.schema import TrackingConfig
from unlearn.tracking.logger import SKIPPED
from unlearn.tracking.rundir import scalar
from unlearn.tracking.store import alone, knock, metric_name, public_uri

DEFAULT_URI = "sqlite:///mlflow.db"

TIMEOUT_S = 4
"""Seconds that one request may take (MLFLOW_HTTP_REQUEST_TIMEOUT where it is set)."""
PATIENCE_S = 8.0
"""Seconds that failing calls may take in all; after that the store is left alone."""
PAUSE_S = 30.0
"""Seconds between two attempts at a store that is away."""
FLUSH_S = 5.0
"""Seconds that values may wait for company."""
BATCH = 500
"""Values that are sent at once; MLflow takes 1,000 in one call."""
BACKLOG = 200_000
"""Most values kept for a store that is away; older ones are dropped (metrics.jsonl has them all)."""

ENDINGS: Mapping[str, str] = {
    "success": "FINISHED",
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "killed": "KILLED",
}
"""Lightning's and our words for the end of a run, in MLflow's; anything else reads as FAILED."""


def make_mlflow_logger(
    config: TrackingConfig,
    run_name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> MLflowRunLogger | None:
    """The MLflow logger of a run, or None when tracking is off.

    The store is ``config.uri``, else MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db`` in the current folder. It is reached at once (on
    rank zero), so that ``run_id`` is known and a store that is away is reported before training. ``run_id`` continues an MLflow run.
    ``params`` is flat.
    """
    if not config.enabled:
        return None
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for noisy in ("alembic", "mlflow.store.db.utils", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    logger = MLflowRunLogger(uri, config.experiment, run_name, params, tags or {}, run_id)
    logger.flush(force=True)
    return logger


class MLflowRunLogger(Logger):
    """One MLflow run, reached when possible.

    ``finalize`` sends what is waiting and ends the MLflow run; Lightning calls it when ``fit`` ends. A value logged later is sent at
    once and sets the run going again, so whoever logs after ``fit`` calls ``finalize`` once more.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> None:
        super().__init__()
        self.uri = uri
        self._experiment_name, self._run_name, self._tags, self._continued_id = experiment, run_name, dict(tags), run_id
        self._params: dict[str, Any] = dict(params)
        self._pending: list[tuple[str, float, int, int]] = []
        self._inner: MLFlowLogger | None = None
        self._steps: dict[str, set[int]] | None = None
        self._stored_params: set[str] = set()
        self._ended = self._warned = False
        self._lost_s, self._retry_at, self._flushed_at = 0.0, 0.0, time.monotonic()

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self._experiment_name

    @property
    def version(self) -> str | None:
        """Id of the MLflow run."""
        return self.run_id

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; the one given while the store has not been reached, None on other ranks than zero."""
        return self._inner.run_id if self._inner is not None else self._continued_id

    @property
    def reached(self) -> bool:
        """Whether the store was reached and has not been given up."""
        return self._inner is not None and self._lost_s < PATIENCE_S

    @property
    def experiment(self) -> Any:
        """MLflow's client, or an object that takes every call and does nothing while the store is away."""
        return self._inner.experiment if self._inner is not None else DummyExperiment()

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add flat ``params``; one that has a value already keeps it."""
        given = vars(params) if isinstance(params, Namespace) else params
        self._params.update(given)
        self.flush()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Queue the numbers among ``metrics`` at ``step`` (0 when none is given); texts are left out."""
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            number = scalar(key, value)
            if key not in SKIPPED and isinstance(number, int | float):
                self._pending.append((metric_name(key), float(number), now, step or 0))
        del self._pending[: max(0, len(self._pending) - BACKLOG)]
        if self._ended or len(self._pending) >= BATCH or time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    @rank_zero_only
    def log_artifacts(self, files: Iterable[Path], folder: str | None = None) -> None:
        """Keep ``files`` with the run, below ``folder``."""
        chosen = [str(file) for file in files]

        def send() -> None:
            self._deliver()
            for file in chosen:
                self.experiment.log_artifact(self.run_id, file, folder)

        self._attempt(send, force=True)

    @rank_zero_only
    def flush(self, force: bool = False) -> bool:
        """Send what is waiting; ``force`` tries a store that failed a moment ago. Whether it arrived."""
        self._flushed_at = time.monotonic()
        return self._attempt(self._deliver, force)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is waiting and end the MLflow run (see ``ENDINGS``); an interrupt that Lightning calls ``failed`` counts as killed."""
        interrupted = status == "failed" and isinstance(sys.exc_info()[1], KeyboardInterrupt | SystemExit)
        ending = "KILLED" if interrupted else ENDINGS.get(status, "FAILED")

        def end() -> None:
            self._deliver()
            self.experiment.set_terminated(self.run_id, ending)

        self._ended = self._attempt(end, force=True)

    def _attempt(self, action: Callable[[], None], force: bool) -> bool:
        started = time.monotonic()
        if self._lost_s >= PATIENCE_S or (started < self._retry_at and not force):
            return False
        try:
            action()
        except Exception as error:  # whatever a store may raise, the run goes on
            self._retry_at = time.monotonic() + PAUSE_S
            self._lost_s += time.monotonic() - started
            self._warn(error)
            return False
        return True

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        shown = public_uri(self.uri)
        reason = (str(error).splitlines() or [""])[0].replace(self.uri, shown)[:160] or type(error).__name__
        warnings.warn(
            f"The MLflow store {shown} does not take this run's values ({reason}); the run goes on, and its own folder has them all.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _deliver(self) -> None:
        inner = self._reach()
        client, run_id = inner.experiment, inner.run_id
        if self._ended:
            client.update_run(run_id, status="RUNNING")
            self._ended = False
        self._deliver_params(inner)
        from mlflow.entities import Metric

        while self._pending:
            batch = self._pending[:BATCH]
            fresh = [Metric(key, value, timestamp, step) for key, value, timestamp, step in batch if step not in self._stored_steps(key)]
            if fresh:
                client.log_batch(run_id, metrics=fresh)
            del self._pending[: len(batch)]

    def _deliver_params(self, inner: MLFlowLogger) -> None:
        params = {metric_name(key): value for key, value in self._params.items()}
        params = {key: value for key, value in params.items() if key not in self._stored_params}
        if params:
            inner.log_hyperparams(params)
            self._stored_params.update(params)
        self._params = {}

    def _stored_steps(self, key: str) -> set[int]:
        """Steps of ``key`` that a continued run has from before; none for a new run."""
        if self._steps is None:
            return set()
        if key not in self._steps:
            self._steps[key] = {metric.step for metric in self.experiment.get_metric_history(self.run_id, key)}
        return self._steps[key]

    def _reach(self) -> MLFlowLogger:
        """Lightning's logger, its MLflow run found or made."""
        if self._inner is None:
            knock(self.uri, TIMEOUT_S)
            import mlflow  # noqa: F401  (slow, so not while others wait for the lock)

            with alone(self.uri):
                self._inner = self._continue() or self._begin()
        return self._inner

    def _continue(self) -> MLFlowLogger | None:
        """The run to go on with; None where there is none, or the store does not know it."""
        if self._continued_id is None:
            return None
        from mlflow.exceptions import MlflowException

        inner = MLFlowLogger(self._experiment_name, tracking_uri=self.uri, run_id=self._continued_id)
        try:
            self._stored_params = set(inner.experiment.get_run(self._continued_id).data.params)
            inner.experiment.update_run(self._continued_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._steps = {}
        return inner

    def _begin(self) -> MLFlowLogger:
        """A new run; tried again when another process has made the experiment a moment ago."""
        from mlflow.exceptions import MlflowException

        inner = MLFlowLogger(self._experiment_name, self._run_name, self.uri, dict(self._tags))
        try:
            _ = inner.experiment
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            _ = inner.experiment
        return inner
