"""Errors a user can act on. Each message is one sentence: the key or file, what was expected, what was found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UnlearnError(Exception):
    """Base of every error this package raises on purpose; the command line prints its message without a traceback."""


class ConfigError(UnlearnError):
    """Wrong keys or values in a configuration; ``problems`` holds one sentence for each of them."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(UnlearnError):
    """Rows that cannot be used: a missing file, an empty stream, an overlap, an entity that is not in its row."""


class ModelError(UnlearnError):
    """A language model or SAE that cannot be loaded, or that does not fit the other."""


class RunError(UnlearnError):
    """A run directory that exists, cannot be resumed, or a training run that had to stop."""


class CacheError(UnlearnError):
    """A cache entry that is damaged or was written by another recipe."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``known``, or an empty string.

    >>> did_you_mean("np0", ["npo", "rmu"])
    " Did you mean 'npo'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
