"""``unlearn attack``: what happens around ``unlearn.attack.attack``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unlearn.cli.arguments import split
from unlearn.cli.console import complain, console, note
from unlearn.errors import ConfigError, RunError, UnlearnError
from unlearn.registry import entries

if TYPE_CHECKING:
    from unlearn.attack import Attacked

STYLES = {"erased": "green", "hidden": "red", "damaged": "red", "not forgotten": "yellow"}


def explain() -> None:
    """Print every key of every attack."""
    from unlearn.config.document import describe

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for style in ("cyan", "magenta", "green", ""):
        table.add_column(style=style, overflow="fold")
    for name, entry in entries("attack").items():
        for row in describe(entry.load().Config, prefix=f"attack.{name}."):
            table.add_row(Text(row.key), Text(row.type), Text(row.default), Text(row.text))
    console().print(table)


def models_of(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(models, other words): the first word, and every further one that is a folder; a folder of runs stands for all of them."""
    from unlearn.tracking.reader import find_runs
    from unlearn.tracking.rundir import is_run

    named = [word for i, word in enumerate(words) if i == 0 or ("=" not in word and Path(word).is_dir())]
    found: list[str] = []
    for word in named:
        path = Path(word)
        plain_model = not path.is_dir() or is_run(path) or (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
        found += [word] if plain_model else [str(run) for run in _runs(path, find_runs)]
    return list(dict.fromkeys(found)), [word for word in words if word not in named]


def _runs(path: Path, find_runs: Any) -> list[Path]:
    from unlearn.tracking.files import read_json

    runs = [run for run in find_runs(path) if read_json(run / "manifest.json").get("kind") is None]
    if not runs:
        raise RunError(f"{path} must be a model, a run, or a folder of runs; found none of them.")
    return runs


class Bar:
    """A bar on standard error over the attacks of one model; only where that is a terminal."""

    def __init__(self, names: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        screen = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        self.bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
        self.task = self.bar.add_task("attack", total=max(1, names))
        self.seen: list[str] = []

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, name: str, share: float) -> None:
        """``name`` is under way, ``share`` of it done."""
        if name not in self.seen:
            self.seen.append(name)
        self.bar.update(self.task, description=name, completed=len(self.seen) - 1 + share)


def start(words: Sequence[str], suite: str, out: Path | None, base: str | None, gold: bool, force: bool) -> None:
    """Attack every model, print a table for each.

    Raises:
        UnlearnError: the configuration is wrong, or the only model cannot be loaded.
        typer.Exit: with 2 if an attack or a model failed, 130 if interrupted.
    """
    from unlearn.config.attacks import chosen_attacks

    models, others = models_of(words)
    count = len(chosen_attacks(suite))
    files, overrides = split(["", *others])
    files = [file for file in files if file]
    if gold:
        overrides.append("evaluation.gold=source")
    if out is not None and len(models) > 1:
        raise ConfigError(f"--out takes the results of one model; found {len(models)} models.")
    failed = 0
    try:
        for number, model in enumerate(models, 1):
            if len(models) > 1:
                console(stderr=True).print(Rule(Text(f"{number} of {len(models)}: {model}"), align="left", style="dim"))
            failed += _one(model, suite, files, overrides, {"out": out, "base": base, "force": force}, count, alone=len(models) == 1)
    except KeyboardInterrupt:
        note(Text("interrupted: finished attacks are kept; the same command makes the rest", style="yellow"))
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(2)


def _one(model: str, suite: str, files: Sequence[str], overrides: Sequence[str], how: dict[str, Any], count: int, *, alone: bool) -> int:
    """Attack one model; how many things failed."""
    from unlearn.attack import attack

    errors: list[ConfigError] = []

    def told(name: str, error: UnlearnError) -> None:
        errors.append(ConfigError([f"{name}: {line}" for line in str(error).splitlines()]))

    try:
        with Bar(count) as bar:
            done = attack(model, suite, files, overrides, told=told, progress=bar.show, **how)
    except UnlearnError as error:
        if alone:
            raise
        complain(error)
        return 1
    for problem in errors:
        complain(problem)
    conclude(done)
    return len(done.failed)


def conclude(done: Attacked) -> None:
    """The table of attacks, the verdict, and where everything is."""
    from unlearn.report.attacks import attack_table

    console().print(attack_table(done.results))
    word, reason = done.judgement
    if word:
        console().print(Text.assemble((word, f"bold {STYLES[word]}"), f": {reason}"))
    for name, lacks in done.skipped.items():
        note(f"{name} was not made: it needs {lacks}")
    if done.kept:
        note(f"made before in the same way, kept (--force makes them again): {', '.join(done.kept)}")
    note(f"kept in {done.path}/attacks, figures in {done.path}/plots")
