"""A process that is lost in training: all others stop within a minute and say which one it was."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from unlearn.errors import UnlearnError

if TYPE_CHECKING:
    from torch.distributed import Store

BEAT_S = 2.0
"""Seconds between two signs of life, and between two looks at those of the others."""
SILENT = 15
"""Looks in a row without a sign of life after which a process counts as lost; looks are counted, since a clock may jump."""
SUSPECT = 3
"""The same, once an exchange with the others has failed."""
GRACE_S = 10.0
"""Seconds that the main thread has for leaving a failed exchange by itself; one on a GPU may hang for ever."""
FAILED = 2
"""Exit status of a process that had to be ended."""
EXCHANGES = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
"""What errors of an exchange between processes speak of; torch has no type for those of gloo."""


def is_exchange(error: BaseException) -> bool:
    """Whether ``error`` comes from talking to other processes, so that the fault lies elsewhere."""
    if isinstance(error, UnlearnError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in EXCHANGES)


class RankWatch(Callback):
    """Gives a sign of life and listens for those of the other processes, in a thread, for as long as ``fit`` lasts.

    ``reason`` says in one sentence why this process has to stop; it is empty where the fault is its own. Where the main thread does not
    come back from an exchange with a lost process, ``last_words(reason)`` is called in the thread and the process is ended.
    """

    _fits: ClassVar[int] = 0

    def __init__(self, last_words: Callable[[str], None]) -> None:
        """Call ``last_words`` in the first process that is left when the main thread hangs."""
        self.last_words = last_words
        self.reason = ""
        self.lost: set[int] = set()
        self.rank, self.size = 0, 1
        self._prefix = ""
        self._store: Store | None = None
        self._stop, self._left, self._found = threading.Event(), threading.Event(), threading.Event()
        self._enough = SILENT

    @property
    def speaks(self) -> bool:
        """Whether this is the first of the processes that are left."""
        return self.rank == min(set(range(self.size)) - self.lost, default=0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin, where there are others."""
        if trainer.world_size == 1 or not dist.is_initialized():
            return
        RankWatch._fits += 1
        self._prefix = f"unlearn/fit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{RankWatch._fits}"
        self.rank, self.size = trainer.global_rank, trainer.world_size
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()  # a connection of its own: the other one may be waiting
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others, or find out which of them it was."""
        if self._store is None:
            return
        if isinstance(exception, Exception) and is_exchange(exception):
            self._enough = SUSPECT
            self._found.wait(BEAT_S * (SUSPECT + 3))
        elif isinstance(exception, Exception):
            self._tell({"rank": self.rank, "reason": str(exception) or type(exception).__name__})
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End."""
        if self._store is not None:
            self._leave()

    def _leave(self) -> None:
        self._left.set()
        self._stop.set()
        try:
            if self._store is not None:
                self._store.set(f"{self._prefix}/done/{self.rank}", "done")
        except RuntimeError:  # whoever kept the store has left already
            pass

    def _tell(self, said: dict[str, Any]) -> None:
        try:
            if self._store is not None:
                self._store.compare_set(f"{self._prefix}/failed", "", json.dumps(said))
        except RuntimeError:  # they will see that the store is gone
            pass

    def _watch(self) -> None:
        heard = dict.fromkeys(set(range(self.size)) - {self.rank}, -1)
        silence = dict.fromkeys(heard, 0)
        while not self.reason:
            try:
                reason = self._look(heard, silence)
            except RuntimeError:
                if 0 not in heard:  # the first process has said good-bye, or this is the first
                    return
                self.lost = {0}
                reason = self._gone()
            if reason or self._stop.wait(BEAT_S):
                break
        if not reason:
            return
        self.reason = reason
        self._found.set()
        if not self._left.wait(GRACE_S):
            if self.speaks:
                Console(stderr=True, highlight=False).print(reason, markup=False)
                self.last_words(reason)
            os._exit(FAILED)

    def _look(self, heard: dict[int, int], silence: dict[int, int]) -> str:
        """One round: give a sign, listen, and say what is wrong."""
        store = self._store
        if store is None:
            return ""
        store.add(f"{self._prefix}/beat/{self.rank}", 1)
        for rank in list(heard):
            if store.check([f"{self._prefix}/done/{rank}"]):
                del heard[rank], silence[rank]
                continue
            beat = store.add(f"{self._prefix}/beat/{rank}", 0)
            silence[rank] = silence[rank] + 1 if beat == heard[rank] else 0
            heard[rank] = beat
        if store.check([f"{self._prefix}/failed"]):
            said = json.loads(store.get(f"{self._prefix}/failed"))
            if said["rank"] != self.rank:
                return f"Process {said['rank']} of {self.size} failed, and the others stopped with it: {said['reason']}"
        self.lost = {rank for rank, looks in silence.items() if looks >= self._enough}
        return self._gone() if self.lost else ""

    def _gone(self) -> str:
        names = ", ".join(map(str, sorted(self.lost)))
        return (
            f"Every process must stay until the run ends; found process {names} of {self.size} (counted from 0) gone, killed or stopped. "
            "See to its machine and its memory, then go on from the last checkpoint with --resume."
        )
