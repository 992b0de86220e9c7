"""The processes of one launch prepare a run together, before there is a process group.

The first process makes the run's folder and fills the caches. The others wait for it, learn what it decided, and stop with it when it
fails. They talk through the key-value store that the process group will be made from, so that no second port is needed.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from unlearn.errors import ElsewhereError, RunError, UnlearnError
from unlearn.processes import Place, alone, connect, place, said_plainly

if TYPE_CHECKING:
    from torch.distributed import Store

Result = TypeVar("Result")

POLL_S = 0.1
BEAT_S = 2.0
"""Seconds between two signs of life of a process that prepares a run."""
SILENCE_S = 60.0
"""Seconds without a sign of life after which a process counts as lost."""
FAREWELL_S = 10.0
"""Most seconds that processes wait for each other after a failure that all of them know of."""

PREPARED = "UNLEARN_PREPARED"
"""Set for processes that Lightning starts in the middle of a run: its folder, and what was decided about it."""


class Processes:
    """All processes of a launch, around one run; a context.

    In a launch of one process every method just does the work. Otherwise each process calls the same methods in the same order; an error
    in one is an error in all, as ``ElsewhereError`` in those that did nothing wrong, which carries the reason.
    """

    _store: ClassVar[Store | None] = None
    _met: ClassVar[int] = 0
    _broken: ClassVar[bool] = False

    def __init__(self, limit: float) -> None:
        """Join the others.

        Args:
            limit: seconds that a process waits for the others, > 0.

        Raises:
            RunError: not all processes came, or an earlier run ended without all of them knowing.
        """
        self.limit = limit
        self.place = _together()
        self._steps = 0
        self._decided: list[Any] = []
        self._agreed = False
        self._prepared = threading.Event()
        if not self.many:
            return
        if Processes._broken:
            raise RunError("A run after one that failed in the middle of training must be started anew; its processes may not be in step.")
        if Processes._store is None:
            Processes._store = connect(self.place, limit)
        Processes._met += 1
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"unlearn/{attempt}/{Processes._met}"
        threading.Thread(target=self._beat, name="sign-of-life", daemon=True).start()

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.place.size > 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.place.rank == 0

    @classmethod
    def broken(cls) -> bool:
        """Whether a run of several processes ended without all of them knowing, so that no further run can be made."""
        return cls._broken

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._prepared.set()
        if not self.many:
            return
        if error is None or self._agreed or not isinstance(error, Exception):
            self._part()
        else:
            Processes._broken = True
        if isinstance(error, UnlearnError) and error.told is None:
            error.told = self._told()

    def behind(self, path: Path) -> bool:
        """Whether this process was started in the middle of a later run than that in ``path``, which was done without it."""
        return self._late() and _prepared()["path"] != str(path.resolve())

    def announce(self, path: Path) -> None:
        """Leave word for processes that Lightning starts from here on: the run in ``path`` is prepared."""
        if not self.many and self.leads:
            os.environ[PREPARED] = json.dumps({"path": str(path.resolve()), "decided": self._decided})

    def _late(self) -> bool:
        return not self.many and not self.leads and PREPARED in os.environ

    def decide(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns in the first process, in all of them; it must survive JSON.

        Raises:
            ElsewhereError: it failed there.
            RunError: there was no answer in time.
        """
        key = self._next("decision")
        if self._late():
            return _prepared()["decided"][self._steps - 1]
        if not self.many:
            self._decided.append(work())
            return self._decided[-1]
        if self.leads:
            value = self._try(work)
            self._store_set(key, json.dumps(value))
            return value
        return json.loads(self._wait(key, 0))

    def in_turn(self, work: Callable[[], Result], meanwhile: Callable[[], None] = lambda: None) -> Result:
        """What ``work`` returns here. The first process goes first, then the first of every other node, then the rest: what one writes to
        a cache, the later ones find, whether nodes share their disks or not. Nothing in ``work`` is shared out.

        Args:
            work: what to do.
            meanwhile: called by a process before it waits for others.

        Raises:
            ElsewhereError: a process that this one waited for failed.
            RunError: one did not answer in time.
        """
        key = self._next("turn")
        if not self.many:
            with alone():
                return work()
        if not self.leads:
            meanwhile()
            self._wait(f"{key}/0", 0)
        if not self.place.leads_node:
            self._wait(f"{key}/node{self.place.node}", self.place.rank - self.place.local_rank)
        with alone():
            result = self._try(work)
        if self.place.leads_node:
            self._store_set(f"{key}/node{self.place.node}", "done")
        self._store_set(f"{key}/{self.place.rank}", "done")
        return result

    def together(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns here, once all processes have done it; the last step before training.

        Raises:
            ElsewhereError: it failed in another process.
            RunError: one did not answer in time.
        """
        key = self._next("together")
        if not self.many:
            return work()
        result = self._try(work)
        self._store_set(f"{key}/{self.place.rank}", "done")
        for rank in range(self.place.size):
            self._wait(f"{key}/{rank}", rank)
        self._prepared.set()
        return result

    def _next(self, name: str) -> str:
        self._steps += 1
        return f"{self._steps}/{name}"

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def _store_set(self, key: str, value: str) -> None:
        with said_plainly():
            _client().set(self._key(key), value)

    def _try(self, work: Callable[[], Result]) -> Result:
        """Do ``work``; when it fails, tell all others why."""
        try:
            return work()
        except BaseException as error:
            self._tell(error)
            raise

    def _tell(self, error: BaseException) -> None:
        """Let all others know; where one of them has failed before, its reason is the one that counts."""
        self._agreed = True
        text = str(error) if isinstance(error, Exception) and str(error) else type(error).__name__
        mine = json.dumps({"rank": self.place.rank, "node": self.place.node, "reason": text})
        with suppress(RuntimeError):  # the store is gone: then the others see that
            first = _client().compare_set(self._key("error"), "", mine).decode()
            if first != mine and isinstance(error, Exception):
                raise self._elsewhere(first) from error

    def _elsewhere(self, text: str) -> ElsewhereError:
        self._agreed = True
        said = json.loads(text)
        told = said["node"] == self.place.node or not self.place.leads_node
        return ElsewhereError(f"process {said['rank']}: {said['reason']}", told=told)

    def _wait(self, key: str, rank: int) -> str:
        """The value of ``key``, which process ``rank`` sets."""
        try:
            return self._answer(key, rank)
        except ElsewhereError:
            raise
        except RunError as error:
            self._tell(error)
            raise

    def _answer(self, key: str, rank: int) -> str:
        deadline = time.monotonic() + self.limit
        beat, heard = -1, time.monotonic()
        with said_plainly():
            client = _client()
            while True:
                if client.check([self._key("error")]):
                    raise self._elsewhere(client.get(self._key("error")).decode())
                if client.check([self._key(key)]):
                    return str(client.get(self._key(key)).decode())
                now, pulse = time.monotonic(), client.add(self._key(f"beat/{rank}"), 0)
                if pulse != beat:
                    beat, heard = pulse, now
                if now - heard > SILENCE_S:
                    raise RunError(f"Process {rank} must give a sign of life while it prepares the run; found none for {SILENCE_S:.0f} s.")
                if now > deadline:
                    raise RunError(
                        f"Process {rank} must be ready within trainer.start_timeout ({self.limit:g} s); found it still preparing the run."
                    )
                time.sleep(min(1.0, POLL_S + (self.limit - deadline + now) / 100))

    def _beat(self) -> None:
        with suppress(RuntimeError):
            while not self._prepared.wait(BEAT_S):
                _client().add(self._key(f"beat/{self.place.rank}"), 1)

    def _told(self) -> bool:
        """Whether another process of this node says why they all stop; the first to ask is the one that says it."""
        mine = str(self.place.rank)
        with suppress(RuntimeError):
            return _client().compare_set(self._key(f"says/{self.place.node}"), "", mine).decode() != mine
        return False

    def _part(self) -> None:
        """Leave together, so that a launcher that ends all processes with the first one does not cut off the one that has to say why."""
        deadline = time.monotonic() + FAREWELL_S
        with suppress(RuntimeError):
            client = _client()
            gone = client.add(self._key("left"), 1)
            while gone < self.place.size and time.monotonic() < deadline:
                time.sleep(POLL_S)
                gone = client.add(self._key("left"), 0)


def _prepared() -> dict[str, Any]:
    said: dict[str, Any] = json.loads(os.environ[PREPARED])
    return said


def _together() -> Place:
    """The place among processes that can talk to each other now; a launch of one where they cannot (yet)."""
    found = place()
    if found.size > 1 and (found.launcher in ("torchelastic", "slurm") or "RANK" in os.environ):
        return found
    if found.launcher == "variables":
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():  # started by Lightning in an earlier run of the same script
            size = dist.get_world_size()
            return replace(found, rank=dist.get_rank(), size=size, local_size=size)
    return Place(found.launcher, found.rank)


def _client() -> Store:
    store = Processes._store
    if store is None:
        raise RuntimeError("not connected")
    return store
