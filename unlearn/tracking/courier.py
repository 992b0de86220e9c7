"""A thread that talks to a tracking store, so that nobody else waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet

LOOK_S = 0.05
"""Seconds between two looks at what is being waited for, and the shortest idle time."""


class Courier:
    """Does jobs one after another in a daemon thread; what is ``urgent`` when told to, what is ``idle`` after ``every()`` seconds without.

    A job that hangs holds up this thread only: whoever waits for one stops waiting when nothing has moved for a while.
    """

    def __init__(self, urgent: Callable[[], object], idle: Callable[[], object], every: Callable[[], float]) -> None:
        """Start no thread yet; ``urgent`` and ``idle`` must not raise."""
        self._urgent, self._idle, self._every = urgent, idle, every
        self._jobs: queue.SimpleQueue[tuple[Callable[[], bool], Future[bool]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._told = threading.Event()
        self._moved_at = 0.0

    def tell(self) -> None:
        """Have what is urgent done soon; does not wait."""
        if not self._told.is_set():
            self._told.set()
            self._post(self._hurry, Future())

    def ask(self, job: Callable[[], bool], patience_s: float) -> bool:
        """What ``job`` returns, once the jobs before it are done.

        Raises:
            TimeoutError: nothing moved for ``patience_s`` seconds (see ``moved``); the job stays in the queue.
            Exception: what ``job`` raised.
        """
        answer: Future[bool] = Future()
        asked = time.monotonic()
        self._post(job, answer)
        while True:
            try:
                return answer.result(timeout=LOOK_S)
            except NotYet:
                if answer.done():  # the job's own error is a TimeoutError
                    raise
                if time.monotonic() - max(asked, self._moved_at) > patience_s:
                    raise TimeoutError(f"no answer for {patience_s:g} s") from None

    def moved(self) -> None:
        """Say, from a job, that the store has just done something."""
        self._moved_at = time.monotonic()

    def stop(self) -> None:
        """Let the thread end when its jobs are done; the next job starts another."""
        if self._thread is not None:
            self._thread = None
            self._jobs.put(None)

    def _post(self, job: Callable[[], bool], answer: Future[bool]) -> None:
        self._jobs.put((job, answer))
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()

    def _hurry(self) -> bool:
        self._told.clear()
        self._urgent()
        return True

    def _work(self) -> None:
        while True:
            try:
                item = self._jobs.get(timeout=max(LOOK_S, self._every()))
            except queue.Empty:
                self._idle()
                continue
            if item is None:
                return
            job, answer = item
            try:
                answer.set_result(job())
            except BaseException as error:
                answer.set_exception(error)
            self.moved()
