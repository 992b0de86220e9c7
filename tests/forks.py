"""Children that take over what their parent has loaded, so that many processes can be killed in little time."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


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
