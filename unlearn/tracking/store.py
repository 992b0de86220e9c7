"""Names and addresses that a tracking store takes."""

from __future__ import annotations

import posixpath
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

DATABASE_PORTS: Mapping[str, int] = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def metric_name(key: str) -> str:
    """``key`` in characters that every MLflow store takes.

    >>> metric_name("latent/c2st_auc@layer3"), metric_name("/forget//accuracy%")
    ('latent/c2st_auc.layer3', 'forget/accuracy_')
    """
    allowed = re.sub(r"[^\w/. -]", "_", key.replace("@", "."), flags=re.ASCII)
    return posixpath.normpath("/" + allowed).lstrip("/")[:250] or "_"


def public_uri(uri: str) -> str:
    """``uri`` without user name and password.

    >>> public_uri("http://me:secret@mlflow:5000/x")
    'http://mlflow:5000/x'
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def knock(uri: str, timeout: float) -> None:
    """Fail at once where a database server does not answer: SQLAlchemy's own attempts take minutes."""
    parts = urlsplit(uri)
    if parts.hostname and parts.scheme.partition("+")[0] in DATABASE_PORTS:
        port = parts.port or DATABASE_PORTS[parts.scheme.partition("+")[0]]
        socket.create_connection((parts.hostname, port), timeout=timeout).close()
