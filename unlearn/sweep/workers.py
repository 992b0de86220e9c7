"""Worker processes of this machine: started, watched, stopped together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearn.errors import PREEMPTED

OF_LAUNCH = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
"""Variables of launchers: every worker is a launch of its own."""
PATIENCE_S = 120.0
"""Seconds that a worker has for saving and leaving."""
INTERRUPTED = 130


@dataclass
class Worker:
    """A process, its log, and how it ended (None while it runs)."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def code(self) -> int | None:
        """Exit status; minus the signal that killed it."""
        return self.process.poll()

    def close(self) -> None:
        """Let go of the pipe that tells it whether its starter is there."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def said(self) -> list[str]:
        """What it said went wrong."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]


@dataclass
class Workers:
    """Workers of one study on this machine. Each leaves by itself when its starter is gone, however that ended."""

    command: Sequence[str]
    folder: Path
    running: list[Worker] = field(default_factory=list)
    ended: list[Worker] = field(default_factory=list)

    def start(self, number: int, of: int) -> Worker:
        """Start worker ``number`` of ``of``; GPUs are shared out, and CPU cores where nothing says otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{socket.gethostname()}-{os.getpid()}-{len(self.running) + len(self.ended)}.log"
        unsafe = [] if os.getcwd() in sys.path or "" in sys.path else ["-P"]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *unsafe, "-m", "unlearn", *self.command],
                stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True, env=environment(os.environ, number, of),
            )  # fmt: skip
        worker = Worker(process, log)
        self.running.append(worker)
        return worker

    def look(self) -> list[Worker]:
        """The workers that have ended since the last look."""
        gone = [worker for worker in self.running if worker.code is not None]
        for worker in gone:
            worker.close()
        self.running = [worker for worker in self.running if worker not in gone]
        self.ended += gone
        return gone

    def tell(self, number: int) -> None:
        """Send a signal to every worker."""
        for worker in self.running:
            worker.process.send_signal(number)

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ask every worker to save and leave, and wait; one that does not is killed."""
        self.tell(number)
        until = time.monotonic() + PATIENCE_S
        try:
            for worker in self.running:
                worker.process.wait(max(0.1, until - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.tell(signal.SIGKILL)
        finally:
            for worker in self.running:
                worker.process.wait()
            self.look()


def environment(given: Mapping[str, str], number: int, of: int) -> dict[str, str]:
    """The variables of worker ``number`` of ``of``: one GPU where there are several, its share of the cores, no launcher.

    >>> env = environment({"CUDA_VISIBLE_DEVICES": "4,5", "RANK": "1", "OMP_NUM_THREADS": "2"}, 3, 4)
    >>> env
    {'CUDA_VISIBLE_DEVICES': '5', 'OMP_NUM_THREADS': '2', 'COLUMNS': '1000'}
    """
    made = {key: value for key, value in given.items() if key not in OF_LAUNCH}
    listed = given.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [] if listed == "" else [p.name.removeprefix("nvidia") for p in gpus()]
    if len(devices) > 1:
        made["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    if of > 1 and "OMP_NUM_THREADS" not in made:
        made["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // of))
    return {**made, "COLUMNS": "1000"}


def gpus() -> list[Path]:
    """Device files of NVIDIA GPUs, in the order of their numbers."""
    found = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("nvidia")))


def leave_with_starter(handle: int) -> None:
    """In a worker: when the file ``handle`` ends, so has the process that started it; then save and leave as for a scheduler's signal."""

    def wait() -> None:
        while os.read(handle, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="starter", daemon=True).start()


def status_of(workers: Sequence[Worker]) -> int:
    """Exit status of all together: that of an error, of a scheduler's signal, of Ctrl-C, else 0 (killed workers were replaced)."""
    codes = {worker.code for worker in workers}
    return next((code for code in (2, 1, PREEMPTED, INTERRUPTED) if code in codes), 0)
