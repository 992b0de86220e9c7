"""The tracking stack of compose.yaml as plain processes, for machines without Docker: PostgreSQL, and an MLflow server that uses it.

    python docker/local_stack.py                            # until Ctrl-C, in a temporary folder
    python docker/local_stack.py -- unlearn run CONFIG      # while the command runs; it finds the server by MLFLOW_TRACKING_URI
    POSTGRES_PASSWORD=... python docker/local_stack.py --folder DIR     # kept: the same runs are there the next time
    python docker/local_stack.py --sqlite                   # SQLite in the place of PostgreSQL

Both listen on 127.0.0.1 only. A stack that is not kept has a random password; nothing but the environment of its processes holds it.
PostgreSQL does not run as root: as root, it is started as the user postgres. Debian: apt-get install postgresql.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S, STOP_S = 300.0, 30.0
"""Seconds that a process may take to answer, and to end."""


class StackError(RuntimeError):
    """A process of the stack did not start."""


@dataclass(frozen=True)
class Stack:
    """A running stack."""

    uri: str
    """tracking address, http://127.0.0.1:PORT"""
    database: str
    """such as 'PostgreSQL 15.12' or 'SQLite'"""
    artifacts: Path
    """folder of the artifacts"""


def postgres_programs() -> Path | None:
    """Folder with ``initdb`` and ``postgres``: on the path, else Debian's newest; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True)
    return next((place for place in places if (place / "initdb").is_file() and (place / "postgres").is_file()), None)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres(folder: Path, password: str) -> Iterator[tuple[str, str]]:
    """A cluster in ``folder`` (made where it is missing), and its end; yields the address without password, and the version.

    Raises:
        StackError: PostgreSQL is not installed, or does not start.
    """
    programs = postgres_programs()
    if programs is None:
        raise StackError("PostgreSQL must be installed (Debian: apt-get install postgresql); found no initdb. --sqlite goes without.")
    folder.mkdir(parents=True, exist_ok=True)
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(folder, user.pw_uid, user.pw_gid)
    data, log, port = folder / "data", folder / "postgres.log", free_port()
    environment = {**os.environ, "PGPASSWORD": password, "LC_ALL": "C.UTF-8"}

    def call(name: str, *words: str) -> str:
        done = subprocess.run(
            (str(programs / name), *words), cwd=folder, env=environment, capture_output=True, text=True, check=False, **owner
        )
        if done.returncode:
            raise StackError(f"{name} must end well; found: {(done.stderr or done.stdout).strip()[-400:]}")
        return done.stdout

    if not (data / "PG_VERSION").is_file():
        secret = folder / "password"
        with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(password)
        if owner:
            os.chown(secret, owner["user"], owner["group"])
        try:
            call("initdb", "-D", str(data), "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8")
        finally:
            secret.unlink()
    words = ("-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
    there = ("-h", "127.0.0.1", "-p", str(port), "-U", "mlflow")
    with process((str(programs / "postgres"), *words), log, environment, signal.SIGINT, cwd=folder, **owner) as server:
        wait_for(
            server, log, lambda: subprocess.run((str(programs / "pg_isready"), *there), capture_output=True, check=False).returncode == 0
        )
        if "mlflow" not in call("psql", *there, "-d", "postgres", "-Atc", "select datname from pg_database").split():
            call("createdb", *there, "mlflow")
        version = re.search(r"[\d.]+", call("postgres", "--version"))
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow", f"PostgreSQL {version.group() if version else ''}".strip()


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder that is deleted; one for each user, so that neither need let the other in."""
    return tempfile.TemporaryDirectory(prefix="unlearn-stack-", ignore_cleanup_errors=True)


@contextmanager
def local_stack(
    folder: Path | None = None, *, sqlite: bool = False, port: int = 0, workers: int = 1, password: str | None = None
) -> Iterator[Stack]:
    """Start the stack, and stop every process of it at the end.

    Args:
        folder: where the data stay; None takes a temporary folder that is deleted.
        sqlite: SQLite in the place of PostgreSQL.
        port: of the MLflow server; 0 takes a free one.
        workers: processes of the MLflow server.
        password: of the database; None makes one up.

    Raises:
        StackError: PostgreSQL is not installed, or a process does not start.
    """
    with ExitStack() as stack:
        place = (folder or Path(stack.enter_context(temporary()))).resolve()
        place.mkdir(parents=True, exist_ok=True)
        artifacts, log, port = place / "artifacts", place / "mlflow.log", port or free_port()
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        if sqlite:
            store, database = f"sqlite:///{place}/mlflow.db", "SQLite"
        else:
            password = password or secrets.token_urlsafe(24)
            cluster = folder / "postgres" if folder else Path(stack.enter_context(temporary()))
            store, database = stack.enter_context(postgres(cluster, password))
            environment["PGPASSWORD"] = password
        words = ("--host=127.0.0.1", f"--port={port}", f"--backend-store-uri={store}", f"--artifacts-destination={artifacts}")
        command = (sys.executable, "-m", "mlflow", "server", *words, f"--workers={workers}")
        server = stack.enter_context(process(command, log, environment, signal.SIGTERM))
        uri = f"http://127.0.0.1:{port}"
        wait_for(server, log, lambda: answers(f"{uri}/health"))
        yield Stack(uri, database, artifacts)


def answers(address: str) -> bool:
    """Whether a GET of ``address`` succeeds."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def process(command: Sequence[str], log: Path, environment: dict[str, str], ending: signal.Signals, **more: Any) -> Iterator[Any]:
    """A process in a group of its own, output to ``log``; at the end it gets ``ending``, and what is left of the group is killed."""
    with log.open("ab") as output:
        made = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True, **more)
    try:
        yield made
    finally:
        made.send_signal(ending)
        try:
            made.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(made.pid, signal.SIGKILL)
            made.wait()


def wait_for(server: Any, log: Path, ready: Callable[[], bool]) -> None:
    """Wait until ``ready``.

    Raises:
        StackError: the process has ended, or takes longer than ``START_S``.
    """
    until = time.monotonic() + START_S
    while not ready():
        if server.poll() is not None or time.monotonic() > until:
            what = "it has ended" if server.poll() is not None else f"no answer for {START_S:g} s"
            raise StackError(f"{server.args[0]} must start; found that {what}: {log.read_text(errors='replace').strip()[-400:]}")
        time.sleep(0.1)


def main() -> int:
    """Start the stack; run the command, or wait for Ctrl-C."""
    parser = argparse.ArgumentParser(description="PostgreSQL and an MLflow server on 127.0.0.1, without Docker.")
    parser.add_argument("--folder", type=Path, help="keep the data here (needs POSTGRES_PASSWORD); a temporary folder without it")
    parser.add_argument("--port", type=int, default=0, help="of the MLflow server; a free one without it")
    parser.add_argument("--workers", type=int, default=2, help="processes of the MLflow server")
    parser.add_argument("--sqlite", action="store_true", help="SQLite in the place of PostgreSQL")
    parser.add_argument("command", nargs="*", help="run this, then stop")
    given = parser.parse_args()
    password = os.environ.get("POSTGRES_PASSWORD")
    if given.folder and not given.sqlite and not password:
        return complain("POSTGRES_PASSWORD must be set for a stack that is kept (--folder); found none.")
    try:
        with local_stack(given.folder, sqlite=given.sqlite, port=given.port, workers=given.workers, password=password) as stack:
            if given.command:
                return subprocess.run(given.command, env={**os.environ, "MLFLOW_TRACKING_URI": stack.uri}, check=False).returncode
            print(  # noqa: T201
                f"MLFLOW_TRACKING_URI={stack.uri}    ({stack.database}; Ctrl-C stops it)", flush=True
            )
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except StackError as error:
        return complain(str(error))
    return 0


def complain(text: str) -> int:
    """Say it on standard error; returns 1."""
    print(text, file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
