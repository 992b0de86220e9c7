"""Dataclasses of the plug-in sections, through the registry: the file of a plug-in is imported when a configuration names it."""

from __future__ import annotations

from typing import Any, cast

from unlearn.config.build import Schemas
from unlearn.errors import ConfigError
from unlearn.registry import find


def _config(kind: str, name: str, key: str) -> type:
    return cast(type, cast(Any, find(kind, name, key).load()).Config)


def _inner(name: str) -> type:
    key = "method.inner.name"
    if cast(Any, find("method", name, key).load()).wraps:
        raise ConfigError(f"{key} must be a method that is no wrapper itself; found {name!r}.")
    return _config("method", name, key)


def plugin_schemas() -> Schemas:
    """What ``load_config`` and ``load_study`` use unless they are told otherwise."""
    return {
        "data": lambda name: _config("source", name, "data.source"),
        "method": lambda name: _config("method", name, "method.name"),
        "method.inner": _inner,
    }
