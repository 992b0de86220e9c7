"""Python scripts that take over what another process has loaded, however they are started: half of the time of a small run is imports.

``python tests/loaded.py SOCKET`` loads everything and waits. A script that begins with ``hand_over(sys.argv)`` and is started with the
variable ``LOADED=SOCKET``, by whomever and in whatever process, is executed in a fork of the one that waits: with the script's arguments,
variables, folder and standard streams; signals go there, the exit status comes back, and the fork does not outlive the script.
``python tests/loaded.py SCRIPT WORDS`` does the same for any script.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

SERVER = Path(__file__)
VARIABLE = "LOADED"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MOST = 1 << 18
"""Bytes of a request, at most."""
PATIENCE_S = 600


@contextlib.contextmanager
def loaded(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The variable for scripts that take over what a process started with ``environment`` has loaded; it ends afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        server = subprocess.Popen([sys.executable, str(SERVER), str(path)], env=dict(environment))
        try:
            until = time.monotonic() + PATIENCE_S
            while not path.exists():
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
            yield {VARIABLE: str(path)}
        finally:
            server.kill()
            server.wait()


def hand_over(words: Sequence[str]) -> None:
    """Have the script ``words[0]`` executed there, and end as it does there; without the variable nothing happens."""
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    request = {"words": list(words), "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.connect(path)
        for number in FORWARDED:
            signal.signal(number, lambda number, frame: there.send(bytes([number])))
        socket.send_fds(there, [json.dumps(request).encode()], [0, 1, 2])
        code = int(there.recv(16) or b"1")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(path: str) -> dict[str, Any]:
    """Wait for scripts, for ever; the request, in the fork that is to execute it."""
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)
        while True:
            connection, _ = listening.accept()
            with connection:
                if not os.fork():
                    listening.close()
                    return _begun(connection)


def _reap(*_: Any) -> None:
    """Take note of children that have ended, and so of what they cost."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _begun(connection: socket.socket) -> dict[str, Any]:
    """A fork for the script, which this process watches over; returns in the fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, streams, _, _ = socket.recv_fds(connection, MOST, 3)
    child = os.fork()
    if child:
        _watch(connection, child)
    connection.close()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    request: dict[str, Any] = json.loads(text)
    return request


def _watch(connection: socket.socket, child: int) -> NoReturn:
    """Send the child the signals that come, tell how it ended, and end it when the other side is gone."""
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([connection, ended], [], [])[0]):
        number = connection.recv(1) if ready else b""
        os.kill(child, number[0] if number else signal.SIGKILL)
    with contextlib.suppress(OSError):
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def load() -> None:
    """Import what runs need."""
    import unlearn

    for name in ("sae_lens", "lightning.pytorch.cli", "lightning.fabric.cli", "mlflow", "matplotlib.pyplot", "peft"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(unlearn.__path__, "unlearn."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def become(request: Mapping[str, Any]) -> None:
    """Be the script's process, as far as one can that has been started as another."""
    from lightning.fabric.utilities import rank_zero

    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if Path(request["words"][0]).suffix == ".py":  # it would hand over again
        del os.environ[VARIABLE]
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # read from the variables when it is imported
    sys.argv, sys.path[0] = request["words"], str(Path(request["words"][0]).parent)
    sys.stdin, sys.stdout, sys.stderr = (open(place, mode, closefd=False) for place, mode in enumerate("rww"))  # noqa: SIM115


def execute(script: str) -> NoReturn:
    """Execute ``script`` and end this process as an interpreter does, but for taking down all that is loaded."""
    code: Any = 1
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ending:
        code = ending.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        hand_over(sys.argv[1:])
    sys.path.insert(1, str(Path(__file__).parents[1]))
    gc.disable()
    load()
    gc.freeze()
    gc.enable()
    become(asked := serve(sys.argv[1]))
    execute(asked["words"][0])
