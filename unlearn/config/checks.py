"""Range checks of configuration fields; every message has the same form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from unlearn.errors import ConfigError, did_you_mean

_collecting: ContextVar[list[str] | None] = ContextVar("collecting", default=None)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Inside, ``check`` and ``one_of`` add their message to the list and go on, so that one pass finds every problem.

    >>> with collected() as problems:
    ...     check(False, "optim.lr", "> 0", -1.0)
    ...     check(False, "optim.clip", ">= 0", -2.0)
    >>> problems
    ['optim.lr must be > 0; found -1.0.', 'optim.clip must be >= 0; found -2.0.']
    """
    problems: list[str] = []
    token = _collecting.set(problems)
    try:
        yield problems
    finally:
        _collecting.reset(token)


def _report(problem: str) -> None:
    problems = _collecting.get()
    if problems is None:
        raise ConfigError(problem)
    problems.append(problem)


def check(ok: bool, key: str, expected: str, found: object) -> None:
    """Raise ``ConfigError`` "<key> must be <expected>; found <found>." unless ``ok``."""
    if not ok:
        _report(f"{key} must be {expected}; found {found!r}.")


def one_of(value: str, choices: Sequence[str], key: str) -> None:
    """Raise ``ConfigError`` that lists ``choices`` and suggests the closest unless ``value`` is among them."""
    if value not in choices:
        _report(f"{key} must be one of {', '.join(choices)}; found {value!r}.{did_you_mean(value, choices)}")
