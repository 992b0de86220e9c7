"""``unlearn run`` and ``unlearn compare``: what happens around ``unlearn.run.execute``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from rich import box
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unlearn.cli.arguments import load
from unlearn.cli.console import complain, console, note
from unlearn.cli.report import publish
from unlearn.config.fingerprint import fingerprint
from unlearn.config.load import load_config
from unlearn.errors import ConfigError, Preempted, RunError, UnlearnError
from unlearn.launch import is_rank_zero, start_processes
from unlearn.meeting import Processes
from unlearn.tracking.files import read_json
from unlearn.tracking.reader import read_run, read_runs
from unlearn.tracking.rundir import STATUS, RunDirectory, is_run, run_path


def start(words: Sequence[str], only: Sequence[str], force: bool, go_on: bool = False) -> None:
    """Make every run, then print their table. A run that fails is reported at once and at the end; the others go on.

    Raises:
        UnlearnError: the configuration is wrong; nothing was run.
        typer.Exit: with 2 if a run failed, 130 if interrupted.
        Preempted: SIGTERM or SIGUSR1 came; the status is 75.
    """
    configs = load(words, only)
    chosen = [part for name in only for part in ("--only", name)]
    options = [*(["--force"] if force else []), *(["--continue"] if go_on else [])]
    start_processes([config.trainer for config in configs], ["run", *words, *chosen, *options])
    from unlearn.run import execute

    paths: list[Path] = []
    failed: list[str] = []
    for number, config in enumerate(configs, 1):
        if len(configs) > 1 and is_rank_zero():
            console(stderr=True).print(Rule(Text(f"run {number} of {len(configs)}: {config.name}"), align="left", style="dim"))
        try:
            paths.append(_uninterrupted(lambda config=config: execute(config, force=force, go_on=go_on), run_path(config.out, config.name)))  # type: ignore[misc]
        except UnlearnError as error:
            if len(configs) == 1 or Processes.broken():
                raise
            complain(error)
            failed.append(config.name)
    _conclude(paths)
    if failed:
        if is_rank_zero():
            note(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}")
        raise typer.Exit(2)


def resume(path: Path, words: Sequence[str], force: bool) -> None:
    """Go on with the run in ``path``, then print its table.

    Raises:
        ConfigError: more was given than the folder.
    """
    if words or force:
        raise ConfigError(f"--resume takes the configuration of the run it goes on with; found {' '.join(words) or '--force'} beside it.")
    config = load_config(RunDirectory.open(path).config_path)
    start_processes([config.trainer], ["run", "--resume", str(path)])
    from unlearn.run import resume as go_on

    _conclude([_uninterrupted(lambda: go_on(path), path)])


def preview(words: Sequence[str], only: Sequence[str]) -> None:
    """Say what ``start`` would run, and what is already in each place."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("folder", "method", "source", "steps", "seed", "fingerprint", "there now"):
        table.add_column(column, justify="right" if column in ("steps", "seed") else "left", overflow="fold")
    for config in load(words, only):
        path = run_path(config.out, config.name)
        state = str(read_json(path / STATUS).get("state", "a run")) if is_run(path) else "nothing"
        cells = (path, config.method.name, config.data.source, config.optim.steps, config.seed, fingerprint(config), state)
        table.add_row(*(Text(str(cell)) for cell in cells))
    console().print(table)
    note("Nothing was run. unlearn config show prints all keys.")


def compare(runs: Sequence[Path], out: Path | None) -> None:
    """Print the table of runs, seeds of one setting as one line; write their report to ``out``.

    The folder of a comparison's ledger gives the table and the report of that comparison.

    Raises:
        RunError: a folder holds no run, or more than one ledger is given.
    """
    from unlearn.report import comparison_table
    from unlearn.report.pool import pool
    from unlearn.report.sheets import is_ledger

    ledgers = [folder for folder in runs if is_ledger(folder)]
    if ledgers:
        _compared(ledgers, [folder for folder in runs if folder not in ledgers], out)
        return
    records = read_runs(runs)
    console().print(comparison_table(pool(records)))
    if out is not None:
        publish(records, out)


def _compared(ledgers: Sequence[Path], runs: Sequence[Path], out: Path | None) -> None:
    """The comparison in a ledger, and the runs of its tests where they are given."""
    from unlearn.report.comparison import comparison_lines
    from unlearn.report.sheets import read_summary

    if len(ledgers) > 1:
        raise RunError(f"One comparison at a time; found the ledgers {', '.join(map(str, ledgers))}.")
    console().print(comparison_lines(read_summary(ledgers[0]), console().width))
    if out is not None:
        publish(read_runs(runs) if runs else [], out, ledgers[0])


def _conclude(paths: Sequence[Path]) -> None:
    """The table of finished runs, and where they are."""
    if not paths or not is_rank_zero():
        return
    from unlearn.report import comparison_table

    console().print(comparison_table([read_run(path) for path in paths]))
    where = " ".join(dict.fromkeys(str(path) for path in paths)) if len(paths) == 1 else str(_common(paths))
    note(f"kept in {where}; unlearn compare {where} --out report.html writes a report")


def _common(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all of ``paths``."""
    return next(parent for parent in paths[0].parents if all(path.is_relative_to(parent) for path in paths))


def _uninterrupted(work: Callable[[], Path], path: Path) -> Path:
    """What ``work`` returns; Ctrl-C, also where Lightning has turned it into an exit, ends the command with status 130 and one line.

    A scheduler's signal ends it with ``PREEMPTED``, and one line as well.
    """
    try:
        return work()
    except KeyboardInterrupt:
        pass
    except Preempted as stopped:
        if is_rank_zero():
            note(Text(f"{stopped.reason}: the run is kept in {path}; unlearn run --resume {path} goes on with it", style="yellow"))
        raise
    except SystemExit as ending:
        if not isinstance(ending.__context__, KeyboardInterrupt):
            raise
    if is_rank_zero():
        kept = is_run(path)
        text = (
            f"interrupted: the run is kept in {path}; unlearn run --resume {path} goes on with it"
            if kept
            else "interrupted: nothing is kept"
        )
        note(Text(text, style="yellow"))
    raise typer.Exit(130)
