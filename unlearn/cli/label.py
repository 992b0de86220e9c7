"""``unlearn label``: parse, call ``unlearn.label``, print."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from unlearn.cli.arguments import split
from unlearn.cli.console import console
from unlearn.config.layers import Layer
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig

if TYPE_CHECKING:
    from unlearn.data.labels import Rule
    from unlearn.label import Labelled


def configuration(words: Sequence[str]) -> RunConfig:
    """The configuration of ``words``; neither ``name`` nor ``method`` has to be given.

    Raises:
        ConfigError: something is wrong.
    """
    files, overrides = split(words)
    config: RunConfig = load_config([Layer({"name": "label", "method": {"name": "none"}}), *files], overrides, plugin_schemas())
    return config


def start(words: Sequence[str], entities: Path | None, out: Path, rule: Rule, force: bool) -> None:
    """Label, then print how many are known, and how to use the file.

    Raises:
        UnlearnError: something the user can put right; what was labelled so far is in the file.
    """
    from unlearn.label import label

    config = configuration(words)
    with bar(config.trainer.progress_bar) as shown:
        found = label(config, out, entities, rule, force=force, shown=shown)
    report(found, out)


@contextlib.contextmanager
def bar(wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar over the entities, on standard error; only where that is a terminal. Yields what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    err = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=err, transient=True, disable=not (wanted and err.is_terminal))
    task = progress.add_task("asking", total=None, visible=False)

    def shown(done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total, visible=True)

    try:
        yield shown
    finally:
        progress.stop()


def report(found: Labelled, out: Path) -> None:
    """Print counts by label and by attribute, and the key under which a source reads the file."""
    screen = console()
    total = sum(found.counts.values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("label", "entities", "share"):
        table.add_column(column, justify="left" if column == "label" else "right", style="green" if column == "entities" else "")
    for name, count in found.counts.items():
        table.add_row(name, str(count), f"{count / total:.1%}")
    screen.print(table)
    attributes = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("attribute", "asked", "right", "share"):
        attributes.add_column(column, justify="left" if column == "attribute" else "right", overflow="fold")
    for name, (asked, right) in found.attributes.items():
        attributes.add_row(Text(name), str(asked), str(right), f"{right / asked:.1%}")
    screen.print(attributes)
    if found.before:
        screen.print(Text(f"{found.before} of {total} were labelled before.", style="dim"))
    screen.print(Text(f"Labels: {out}; a source reads them with data.labels={out}"), soft_wrap=True)
