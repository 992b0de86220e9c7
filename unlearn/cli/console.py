"""Where commands print."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.text import Text

from unlearn.errors import ConfigError, UnlearnError

PLAIN_WIDTH = 100
"""Columns of output that goes to a file or a pipe, unless COLUMNS says otherwise."""


def console(stderr: bool = False) -> Console:
    """A console on standard output or standard error, as they are now."""
    stream = sys.stderr if stderr else sys.stdout
    fixed = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH if fixed else None)


def complain(error: UnlearnError) -> None:
    """Each problem of ``error`` on a line of standard error."""
    for line in error.problems if isinstance(error, ConfigError) else str(error).splitlines():
        note(Text.assemble(("error: ", "bold red"), line))


def note(text: str | Text) -> None:
    """One line of standard error, wrapped on a terminal only."""
    err = console(stderr=True)
    err.print(Text(text, style="dim") if isinstance(text, str) else text, soft_wrap=not err.is_terminal)
