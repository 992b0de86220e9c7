"""Where commands print."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.text import Text

from unlearn.config.secrets import hide_secrets
from unlearn.errors import ConfigError, UnlearnError
from unlearn.processes import place

LAST_S = 2.0
"""Seconds by which a process leaves after the one that says why; launchers end all processes with the first."""

PLAIN_WIDTH = 100
"""Columns of output that goes to a file or a pipe, unless COLUMNS says otherwise."""


def console(stderr: bool = False) -> Console:
    """A console on standard output or standard error, as they are now."""
    stream = sys.stderr if stderr else sys.stdout
    fixed = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH if fixed else None)


def complain(error: UnlearnError) -> None:
    """Each problem of ``error``, without passwords, on a line of standard error; nothing where another process of this node says it."""
    if error.told or (error.told is None and not place().leads_node):
        time.sleep(LAST_S)
        return
    for line in error.problems if isinstance(error, ConfigError) else str(error).splitlines():
        note(Text.assemble(("error: ", "bold red"), hide_secrets(line)))


def note(text: str | Text) -> None:
    """One line of standard error, wrapped on a terminal only."""
    err = console(stderr=True)
    err.print(Text(text, style="dim") if isinstance(text, str) else text, soft_wrap=not err.is_terminal)
