"""Where a study is kept: a journal file on a disk that all workers see, SQLite on one machine, or PostgreSQL."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from unlearn.config.secrets import hide_secrets
from unlearn.errors import RunError
from unlearn.tracking.store import alone, public_uri

if TYPE_CHECKING:
    from unlearn.config.sweep import SweepSpec

JOURNAL = "study.journal"
BUSY_S = 60
"""Seconds that a process waits for another one that writes to the same SQLite file."""
TABLES = 7_203_144_519
"""Number of PostgreSQL's lock for making tables; any that nobody else takes."""
LOCK_S = 30
"""Seconds after which the lock of a journal counts as left behind by a process that was killed."""


class HeartbeatJournal(JournalStorage, BaseHeartbeat):
    """A journal file whose workers give signs of life, as Optuna's databases do: each running trial has a file that is touched.

    Only times of that disk are compared with each other, so that the clocks of the machines need not agree.
    """

    def __init__(self, path: Path, interval: int, patience: int) -> None:
        """Open, or make, the journal at ``path``; signs come every ``interval`` seconds, a worker is lost after ``patience`` seconds."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileSymlinkLock(str(path), grace_period=LOCK_S)
        _mend(path, lock)
        super().__init__(JournalFileBackend(str(path), lock_obj=lock))
        self.beats = path.with_name(f"{path.name}.beats")
        self.interval, self.patience = interval, patience

    def record_heartbeat(self, trial_id: int) -> None:
        """Touch the file of a trial."""
        self.beats.mkdir(exist_ok=True)
        (self.beats / str(trial_id)).touch()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        times = {trial._trial_id: _touched(self.beats / str(trial._trial_id)) for trial in running}
        if not any(times.values()):
            return []
        probe = self.beats / f"now.{os.getpid()}"
        probe.touch()
        now = _touched(probe) or time.time()
        probe.unlink(missing_ok=True)
        return [trial_id for trial_id, at in times.items() if at is not None and now - at > self.patience]

    def get_heartbeat_interval(self) -> int | None:
        """Seconds between two signs of life."""
        return self.interval

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, optuna.trial.FrozenTrial], None] | None:
        """None: ``slots.plan`` sees to lost trials."""
        return None


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _mend(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut off a last line that a killed process, or a full disk, left torn; the next one would be glued to it."""
    if not path.is_file():
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            text = file.read()
            if text and not text.endswith(b"\n"):
                file.truncate(text.rfind(b"\n") + 1)
    finally:
        lock.release()


def journal_path(spec: SweepSpec, folder: Path) -> Path | None:
    """File of the journal; None for a database."""
    storage = spec.settings.storage
    if storage == "journal":
        return folder / JOURNAL
    return Path(storage.removeprefix("journal:///")) if storage.startswith("journal:") else None


def open_storage(spec: SweepSpec, folder: Path) -> BaseStorage:
    """The storage of a study whose runs are in ``folder``.

    Raises:
        RunError: it does not answer.
    """
    interval, patience = spec.settings.heartbeat, spec.settings.patience
    path = journal_path(spec, folder)
    with answering(spec, opening=True):
        if path is not None:
            return HeartbeatJournal(path, interval, patience)
        url = spec.settings.storage
        lite = url.startswith("sqlite")
        arguments: dict[str, Any] = {"connect_args": {"timeout": BUSY_S, "isolation_level": None}} if lite else {"pool_pre_ping": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            with _first(url):
                storage = RDBStorage(url, engine_kwargs=arguments, heartbeat_interval=interval, grace_period=patience)
        if lite:
            _one_at_a_time(storage)
        return storage


def _one_at_a_time(storage: RDBStorage) -> None:
    """Let every transaction of a SQLite study take the file's lock at its beginning.

    SQLite has no locks of rows: where the lock is taken with the first change only, two workers can both read that a trial waits before
    either says that it is taken, and both make it.
    """
    from sqlalchemy import event

    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


@contextmanager
def _first(url: str) -> Iterator[None]:
    """One process at a time makes the tables of a database; workers that start together would break each other's."""
    if not url.startswith("postgresql"):
        with alone(url):
            yield
        return
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    with create_engine(url, poolclass=NullPool).connect() as connection:
        connection.execute(text("select pg_advisory_lock(:key)"), {"key": TABLES})  # held until the connection ends
        yield


@contextmanager
def answering(spec: SweepSpec, *, opening: bool = False) -> Iterator[None]:
    """One sentence for whatever the storage has against what is asked of it; ``opening``: nothing else is asked of anything.

    Raises:
        RunError: it does not answer, or cannot be written.
    """
    from sqlalchemy.exc import SQLAlchemyError

    expected: tuple[type[Exception], ...] = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
    if opening:
        expected += (ImportError, OSError, ValueError)
    try:
        yield
    except expected as error:
        cause = error.__cause__ or error
        reason = hide_secrets((str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(error).__name__])[0])
        raise RunError(
            f"storage must be a study's place that answers; found {public_uri(spec.settings.storage)}, which says: {reason}."
        ) from error
