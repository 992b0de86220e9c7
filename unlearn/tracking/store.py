"""Names and addresses that a tracking store takes, and a quick look whether it is there."""

from __future__ import annotations

import posixpath
import re
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

DATABASE_PORTS: Mapping[str, int] = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

LOCK_S = 120.0
"""Seconds that a run waits for another one that is making the same SQLite store."""


def metric_name(key: str) -> str:
    """``key`` in characters that every MLflow store takes; the ends of intervals go together, for its pages make a section of every scope.

    >>> metric_name("latent/c2st_auc@layer3"), metric_name("/forget//accuracy%"), metric_name("forget/accuracy/ci_low")
    ('latent/c2st_auc.layer3', 'forget/accuracy_', 'interval/forget.accuracy.ci_low')
    """
    if key.endswith(("/ci_low", "/ci_high")):
        key = "interval/" + key.replace("/", ".")
    allowed = re.sub(r"[^\w/. -]", "_", key.replace("@", "."), flags=re.ASCII)
    return posixpath.normpath("/" + allowed).lstrip("/")[:250] or "_"


def public_uri(uri: str) -> str:
    """``uri`` without user name, password and options.

    >>> public_uri("http://me:secret@mlflow:5000/x"), public_uri("postgresql://db/x?password=secret")
    ('http://mlflow:5000/x', 'postgresql://db/x')
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")) if parts.netloc else uri


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for every other store.

    >>> str(sqlite_file("sqlite:///runs/mlflow.db"))
    'runs/mlflow.db'
    """
    scheme, _, rest = uri.partition(":///")
    name = rest.partition("?")[0]
    return Path(name) if scheme.partition("+")[0] == "sqlite" and name and name != ":memory:" else None


def knock(uri: str, timeout: float) -> None:
    """Fail at once where a database does not answer (SQLAlchemy's own attempts take minutes); other stores are left to the client.

    Raises:
        OSError: nobody listens at the address, or a SQLite file cannot be made there.
        sqlite3.Error: the SQLite file is no database, or cannot be read.
    """
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if parts.hostname and kind in DATABASE_PORTS:
        socket.create_connection((parts.hostname, parts.port or DATABASE_PORTS[kind]), timeout=timeout).close()
    file = sqlite_file(uri)
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        with closing(sqlite3.connect(file, timeout=timeout)) as store:
            store.execute("pragma schema_version").fetchone()


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """One process at a time makes the tables of a SQLite store; runs that start together would break each other's."""
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    from filelock import FileLock

    with FileLock(f"{file}.lock", timeout=LOCK_S):
        yield
