"""Errors a user can act on. Each message is one sentence: the key or file, what was expected, what was found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UnlearnError(Exception):
    """Base of every error this package raises on purpose; the command line prints its message without a traceback."""

    told: bool | None = None
    """Whether another process says it where this one's output goes; None where nobody has asked."""


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


class ElsewhereError(RunError):
    """Another process of the same launch failed; ``told`` says whether the reason is shown where this one's output goes."""

    def __init__(self, reason: str, *, told: bool = True) -> None:
        self.told = told
        super().__init__(reason)


class Stopped(RunError):
    """A run that was ended early on purpose."""


class CacheError(UnlearnError):
    """A cache entry that is damaged or was written by another recipe."""


PREEMPTED = 75
"""Exit status of a run that a scheduler stopped: it is saved and wants to be started again (EX_TEMPFAIL of sysexits.h)."""


class Preempted(SystemExit):
    """SIGTERM or SIGUSR1 has come: the run is saved, and the process ends with status ``PREEMPTED``."""

    def __init__(self, reason: str) -> None:
        super().__init__(PREEMPTED)
        self.reason = reason


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``known``, or an empty string.

    >>> did_you_mean("np0", ["npo", "rmu"])
    " Did you mean 'npo'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
