"""A progress bar that names what is being built and vanishes when it is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[], None]


@contextmanager
def steps_bar(title: str, total: int, *, show: bool) -> Iterator[Advance]:
    """Yield a function to be called once a step. Nothing is drawn unless ``show`` and stderr is a terminal."""
    console = Console(file=sys.stderr)
    if not (show and console.is_terminal):
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
