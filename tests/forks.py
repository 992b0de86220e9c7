"""Children that take over what their parent has loaded, so that many processes can be killed in little time."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn
from unittest import mock


def forked(work: Callable[[], None], log: Path, environment: dict[str, str] | None = None) -> int:
    """Start ``work`` in a child; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment or {})
        with log.open("ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        work()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # a child must not go on with its parent's work
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Command:
    """``python -m unlearn WORDS`` as ``subprocess.Popen`` starts it, but that it takes over what its parent has loaded: a process and a
    session of its own, with its own folder, variables, standard streams and signals. Workers that it starts are such processes, too.
    """

    def __init__(self, command: Sequence[str], *, stdout: IO[bytes], env: Mapping[str, str], cwd: Path = Path(), **_: Any) -> None:
        """Start it; what it says goes to ``stdout``."""
        self.returncode: int | None = None
        theirs, mine = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(mine)
            _begin(command[command.index("unlearn") + 1 :], (theirs, stdout.fileno(), stdout.fileno()), env, cwd)
        os.close(theirs)
        self.stdin = os.fdopen(mine, "wb")

    def poll(self) -> int | None:
        """Exit status, minus the signal that killed it; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Exit status, once it has ended."""
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("unlearn", timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _begin(words: Sequence[str], streams: Sequence[int], environment: Mapping[str, str], folder: Path) -> NoReturn:
    """What a ``Command`` does in its child."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
        sys.stdin, sys.stdout, sys.stderr = (open(place, mode, closefd=False) for place, mode in enumerate("rww"))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        import torch

        from unlearn.cli import main
        from unlearn.sweep import workers

        torch.set_num_threads(1)  # those of the parent are not there

        known = {"PIPE": subprocess.PIPE, "TimeoutExpired": subprocess.TimeoutExpired}
        workers.subprocess = SimpleNamespace(Popen=Command, **known)  # type: ignore[assignment]
        main(words)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["sae_lens", "tests.breakage", "tests.kills", "tests.wholes"])
"""A process of its own that has these loaded and nothing else, and that children are forked from."""


def told_by(module: str, folder: Path, *arguments: str, seconds: float = 1800) -> Any:
    """What ``python -m module folder *arguments`` prints as its last line, which is JSON."""
    told, said = folder / "told", folder / "said"
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}):
        process = SERVER.Process(target=_tell, args=(module, [str(folder), *arguments], told, said))
        process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode == 0, said.read_text()[-3000:]
    return json.loads(told.read_text().splitlines()[-1])


def _tell(module: str, arguments: Sequence[str], *streams: Path) -> None:
    for place, path in enumerate(streams, 1):
        with path.open("w") as file:
            os.dup2(file.fileno(), place)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


def ended(pid: int) -> int:
    """Exit status of a child; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def free_port() -> int:
    """A port that nobody listens at, and that the kernel gives to no connection of its own accord before it is used.

    Drawn anew in every process, whatever seeds its random numbers.
    """
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(25_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
