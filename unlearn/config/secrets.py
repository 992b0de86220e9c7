"""Passwords and tokens: where they may stand, and how a text is shown without them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

SECRET = re.compile(r"password|passwd|token|secret|credential|api_?key", re.IGNORECASE)
"""Names of environment variables, and of options of an address, that hold what nobody else should read."""
SHORTEST = 6
"""Characters; something shorter would be found in harmless words."""

_USER = re.compile(r"(?<=://)[^\s/]*@(?=[^\s/])")
_OPTION = re.compile(rf"([?&][^=&\s]*(?:{SECRET.pattern})[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def holds_password(uri: str) -> bool:
    """Whether a password stands in ``uri``, before the host or among the options.

    >>> holds_password("http://me:secret@mlflow:5000"), holds_password("postgresql://db/x?user=me&password=secret")
    (True, True)
    >>> holds_password("postgresql://me@db:5432/x"), holds_password("sqlite:///a:b@c.db")
    (False, False)
    """
    parts = urlsplit(uri)
    return ":" in parts.netloc.rpartition("@")[0] or any(SECRET.search(key) for key, _ in parse_qsl(parts.query))


def hide_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """``text`` without user and password before the host of an address, and without the values of secret environment variables.

    >>> hide_secrets("no answer from http://me:secret@mlflow:5000/x?token=abc; HF said hf_abcd", {"HF_TOKEN": "hf_abcd"})
    'no answer from http://***@mlflow:5000/x?token=***; HF said ***'
    """
    for name, value in (os.environ if environment is None else environment).items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, "***")
    return _OPTION.sub(r"\1***", _USER.sub("***@", text))
