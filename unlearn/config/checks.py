"""Range checks of configuration fields; every message has the same form."""

from __future__ import annotations

from collections.abc import Sequence

from unlearn.errors import ConfigError, did_you_mean


def check(ok: bool, key: str, expected: str, found: object) -> None:
    """Raise ``ConfigError`` "<key> must be <expected>; found <found>." unless ``ok``."""
    if not ok:
        raise ConfigError(f"{key} must be {expected}; found {found!r}.")


def one_of(value: str, choices: Sequence[str], key: str) -> None:
    """Raise ``ConfigError`` that lists ``choices`` and suggests the closest unless ``value`` is among them."""
    if value not in choices:
        raise ConfigError(f"{key} must be one of {', '.join(choices)}; found {value!r}.{did_you_mean(value, choices)}")
