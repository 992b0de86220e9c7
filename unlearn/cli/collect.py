"""``unlearn collect``: parse, call ``unlearn.collect``, print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from unlearn.cli.arguments import split
from unlearn.cli.console import console, note
from unlearn.config.document import describe
from unlearn.registry import find

if TYPE_CHECKING:
    from unlearn.collect import Collected

EXAMPLES = 6
"""Rows that are printed."""


def explain(maker: str) -> None:
    """Print every key of a maker.

    Raises:
        ConfigError: there is no such maker.
    """
    cls = find("maker", maker, "collect").load().Config
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for style in ("cyan", "magenta", "green", ""):
        table.add_column(style=style, overflow="fold")
    for row in describe(cls, prefix="maker."):
        table.add_row(Text(row.key), Text(row.type), Text(row.default), Text(row.text))
    console().print(table)


def start(maker: str, words: Sequence[str], out: Path, entities: Sequence[str], force: bool) -> None:
    """Collect, then say what was collected and how to use it.

    Raises:
        UnlearnError: something the user can put right; no file was written.
    """
    from unlearn.collect import collect, collect_config

    files, overrides = split(words)
    config = collect_config(maker, files, overrides)
    with Bar(config.trainer.progress_bar) as bar:
        found = collect(config, out, names(entities), force=force, shown=bar.show)
    report(found, out)


def names(entities: Sequence[str]) -> list[str]:
    """Names as given; a word that is a file stands for its lines."""
    found: list[str] = []
    for word in entities:
        path = Path(word)
        found += [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()] if path.is_file() else [word]
    return found


class Bar:
    """A bar over the texts the model writes, on standard error; only where that is a terminal."""

    def __init__(self, wanted: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        err = console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=err, transient=True, disable=not (wanted and err.is_terminal))
        self.task = self.bar.add_task("writing", total=None, visible=False)

    def __enter__(self) -> Bar:
        return self

    def show(self, done: int, total: int) -> None:
        """Move it; it appears when the first text is there."""
        self.bar.start()
        self.bar.update(self.task, completed=done, total=total, visible=True)

    def __exit__(self, *ending: object) -> None:
        self.bar.stop()


def report(found: Collected, out: Path) -> None:
    """Print counts, examples, and the settings of a run on the file."""
    import yaml

    screen = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("entity", overflow="fold")
    kinds = list(dict.fromkeys(row.get("kind", "qa") for row in found.rows))
    reasons = list(dict.fromkeys(reason for _, reason in found.dropped))
    for column in (*kinds, "rows"):
        table.add_column(column, justify="right", style="green")
    for column in reasons:
        table.add_column(column, justify="right", style="dim")
    counts = Counter((row["entity"], row.get("kind", "qa")) for row in found.rows)
    for entity in dict.fromkeys([*(row["entity"] for row in found.rows), *(name for name, _ in found.dropped)]):
        own = [counts[entity, kind] for kind in kinds]
        left = [found.dropped.get((entity, reason), 0) for reason in reasons]
        table.add_row(Text(entity), *(str(n) for n in (*own, sum(own), *left)))
    screen.print(table)
    rows = found.rows
    for row in [rows[i * len(rows) // min(EXAMPLES, len(rows))] for i in range(min(EXAMPLES, len(rows)))]:
        screen.print(Text.assemble((f"{row.get('question', '')} ", "dim"), (row["answer"], "cyan")))
    screen.print()
    copied = ", ".join(f"{count} {name}" for name, count in found.copied.items())
    screen.print(Text(f"{len(rows)} forget rows{f', and {copied} rows of the source' if copied else ''}: {out}"))
    if not copied:
        note("The file holds forget rows only; a run needs retain rows too (maker.copy=true, or further files in the same folder).")
    screen.print(Text("A run on it:"))
    screen.print(Text(yaml.safe_dump(dict(found.settings), sort_keys=False, width=1000).rstrip(), style="dim"), soft_wrap=True)
