"""``unlearn evaluate``: what happens around ``unlearn.benchmark.evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.text import Text

from unlearn.cli.arguments import split
from unlearn.cli.console import complain, console, note
from unlearn.errors import ConfigError, UnlearnError
from unlearn.launch import is_rank_zero
from unlearn.tracking.reader import read_run


def start(model: str, words: Sequence[str], benchmarks: Sequence[str], out: Path | None, base: str | None, force: bool) -> None:
    """Measure the model on every benchmark, then print their table. One that fails is reported at once; the others go on.

    Raises:
        UnlearnError: the model cannot be loaded or the configuration is wrong; nothing was measured.
        typer.Exit: with 2 if a benchmark failed, 130 if interrupted.
    """
    from unlearn.benchmark import evaluate

    def told(name: str, error: UnlearnError) -> None:
        if is_rank_zero():
            complain(ConfigError([f"{name}: {line}" for line in str(error).splitlines()]))

    files, overrides = split(words)
    try:
        done = evaluate(model, benchmarks, files, overrides, out=out, base=base, force=force, told=told)
    except KeyboardInterrupt:
        note(Text("interrupted: finished benchmarks are kept; the same command measures the rest", style="yellow"))
        raise typer.Exit(130) from None
    if is_rank_zero():
        _conclude(done.folders, done.kept)
    if done.failed:
        note(f"{len(done.failed)} of {len(done.failed) + len(done.folders)} benchmarks failed: {', '.join(done.failed)}")
        raise typer.Exit(2)


def _conclude(folders: Mapping[str, Path], kept: Sequence[str]) -> None:
    """The table of what was measured, and where it is."""
    from unlearn.report import comparison_table

    if not folders:
        return
    console().print(comparison_table([read_run(path) for path in folders.values()]))
    if kept:
        note(f"measured before with the same model, rows and configuration, kept (--force measures again): {', '.join(kept)}")
    where = next(iter(folders.values())).parent
    note(f"kept in {where}; unlearn compare {where} --out report.html writes a report")
