"""MLflow: the values of a run in a tracking store, without letting the store stop or slow the run.

Lightning's ``MLFlowLogger`` makes the experiment and the run. Around it, a thread sends values in batches (MLflow's own asynchronous
logging drops a batch that fails), a store that cannot be reached costs a bounded time and one warning, and a continued run gets no step
twice.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from unlearn.config.schema import TrackingConfig
from unlearn.config.secrets import hide_secrets
from unlearn.tracking.courier import Courier
from unlearn.tracking.logger import SKIPPED
from unlearn.tracking.rundir import scalar
from unlearn.tracking.store import LOCK_S, metric_name, public_uri
from unlearn.tracking.stored_run import Row, StoredRun

DEFAULT_URI = "sqlite:///mlflow.db"

TIMEOUT_S = 10
"""Seconds that one request may take (MLFLOW_HTTP_REQUEST_TIMEOUT where it is set)."""
PATIENCE_S = 25.0
"""Seconds that a run may wait for failing calls; after that nobody waits until a call has succeeded."""
STALL_S = 15.0
"""Seconds without an answer after which a run stops waiting for a store that it has reached before."""
PAUSE_S = 30.0
"""Seconds between two attempts at a store that is away, while nobody waits."""
FLUSH_S = 10.0
"""Seconds that values may wait for company: each batch costs the store, and the thread that sends it, several milliseconds."""
LAST_TRIES, LAST_PAUSE_S = 3, 0.5
"""Attempts to end the MLflow run of a store that was there before, and seconds between them."""
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
    quieten()
    logger = MLflowRunLogger(store_uri(config), config.experiment, run_name, params, tags or {}, run_id)
    logger.flush(force=True)
    return logger


def quieten() -> None:
    """Set what MLflow reads from the environment: short waits, no telemetry, no chatter."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(TIMEOUT_S))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for noisy in ("alembic", "mlflow.store.db.utils", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def store_uri(config: TrackingConfig) -> str:
    """Address of the store: ``tracking.uri``, else MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db`` in the current folder."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


class MLflowRunLogger(Logger):
    """One MLflow run, reached when possible.

    Logging a value only queues it; a thread sends what has gathered. ``finalize`` sends what is waiting and ends the MLflow run;
    Lightning calls it when ``fit`` ends, and the end of the process does where nobody has. A value logged later is sent at once and
    sets the run going again, so whoever logs after ``fit`` calls ``finalize`` once more.
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
        self._run = StoredRun(uri, experiment, run_name, tags, run_id, TIMEOUT_S)
        self._params: dict[str, Any] = dict(params)
        self._pending: list[Row] = []
        self._lock = threading.Lock()  # of the two above
        self._courier = Courier(lambda: self._round(BATCH), self._round, lambda: FLUSH_S)
        self._trouble: Exception | None = None
        self._ended = self._warned = False
        self._lost_s, self._retry_at = 0.0, 0.0
        atexit.register(self._abandon)

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self._run.experiment

    @property
    def version(self) -> str | None:
        """Id of the MLflow run."""
        return self.run_id

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; the one given while the store has not been reached, None on other ranks than zero."""
        return self._run.run_id

    @property
    def reached(self) -> bool:
        """Whether the store was reached and is still waited for."""
        return self._run.reached and self._lost_s < PATIENCE_S

    @property
    def experiment(self) -> Any:
        """MLflow's client, or an object that takes every call and does nothing while the store is away."""
        return self._run.client

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add flat ``params``; one that has a value already keeps it."""
        with self._lock:
            self._params.update(vars(params) if isinstance(params, Namespace) else params)
        self._courier.tell()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Queue the numbers among ``metrics`` at ``step`` (0 when none is given); texts are left out."""
        now = int(time.time() * 1000)
        numbers = ((key, scalar(key, value)) for key, value in metrics.items() if key not in SKIPPED)
        rows = [(metric_name(key), float(number), now, step or 0) for key, number in numbers if isinstance(number, int | float)]
        with self._lock:
            self._pending += rows
            del self._pending[: max(0, len(self._pending) - BACKLOG)]
        if self._ended:
            atexit.register(self._abandon)
            self.flush()
        elif len(self._pending) >= BATCH:
            self._courier.tell()
        self._report()

    @rank_zero_only
    def log_artifacts(self, files: Iterable[Path], folder: str | None = None) -> None:
        """Keep ``files`` with the run, below ``folder``."""
        chosen = list(files)

        def send() -> None:
            self._deliver()
            for file in chosen:
                self._run.add_file(file, folder)
                self._courier.moved()

        self._wait_for(send, force=True)

    @rank_zero_only
    def tag(self, key: str, value: str) -> None:
        """Set a tag of the MLflow run, such as ``mlflow.note.content``, its description."""
        self._wait_for(lambda: self._run.tag(key, value), force=False)

    @rank_zero_only
    def flush(self, force: bool = False) -> bool:
        """Send what is waiting and wait for it; ``force`` tries a store that failed a moment ago. Whether it arrived."""
        return self._wait_for(self._deliver, force)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is waiting and end the MLflow run (see ``ENDINGS``); an interrupt that Lightning calls ``failed`` counts as killed."""
        interrupted = status == "failed" and isinstance(sys.exc_info()[1], KeyboardInterrupt | SystemExit)
        ending = "KILLED" if interrupted else ENDINGS.get(status, "FAILED")

        def end() -> None:
            self._deliver()
            self._run.end(ending)

        atexit.unregister(self._abandon)
        for left in reversed(range(LAST_TRIES)):
            self._ended = self._wait_for(end, force=True)
            if self._ended or not self.reached or not left:
                break
            time.sleep(LAST_PAUSE_S)
        self._courier.stop()

    def _abandon(self) -> None:
        """At the end of the process: send what is waiting and close a run that nobody has closed."""
        if self._run.reached:
            self.finalize("failed")

    def _wait_for(self, action: Callable[[], None], force: bool) -> bool:
        """``action``, in the courier's thread; the time that is lost over a failure is counted."""
        if self._lost_s >= PATIENCE_S:
            return False
        started = time.monotonic()
        try:
            done = self._courier.ask(lambda: self._attempt(action, force), STALL_S if self._run.reached else LOCK_S)
        except TimeoutError as error:
            self._trouble, done = error, False
        if not done:
            self._lost_s += time.monotonic() - started
        self._report()
        return done

    def _round(self, least: int = 1) -> None:
        """What the courier does unasked: bring what has gathered, if that is ``least`` values."""
        if len(self._pending) >= least or self._params:
            self._attempt(lambda: self._deliver(least), force=False)

    def _attempt(self, action: Callable[[], None], force: bool) -> bool:
        if time.monotonic() < self._retry_at and not force:
            return False
        try:
            action()
        except Exception as error:  # whatever a store may raise, the run goes on
            self._retry_at = time.monotonic() + PAUSE_S
            self._trouble = error
            return False
        self._retry_at = self._lost_s = 0.0
        return True

    def _report(self) -> None:
        """Warn of the first trouble, in the thread of whoever logs."""
        error = self._trouble
        if error is None or self._warned:
            return
        self._warned = True
        shown = public_uri(self.uri)
        reason = hide_secrets((str(error).splitlines() or [""])[0].replace(self.uri, shown))[:160] or type(error).__name__
        warnings.warn(
            f"The MLflow store {shown} does not take this run's values ({reason}); the run goes on, and its own folder has them all.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _deliver(self, least: int = 1) -> None:
        """Send what is waiting, in the courier's thread, while it is ``least`` values; what does not arrive waits on."""
        self._run.reach()
        if self._ended:
            self._run.reopen()
            self._ended = False
        with self._lock:
            params = dict(self._params)
        self._run.add_params(params)
        with self._lock:
            self._params = {key: value for key, value in self._params.items() if key not in params}
        while batch := self._take(least):
            try:
                self._run.add_metrics(batch)
            except BaseException:
                with self._lock:
                    self._pending[:0] = batch
                raise
            self._courier.moved()

    def _take(self, least: int) -> list[Row]:
        with self._lock:
            if len(self._pending) < least:
                return []
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
        return batch
