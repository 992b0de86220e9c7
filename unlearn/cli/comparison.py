"""``unlearn compare CONFIG --trials N --seeds K``: what happens around ``unlearn.comparison.compare``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from unlearn.cli.arguments import split
from unlearn.cli.console import complain, console, note
from unlearn.cli.matrix import chosen, seeds_of
from unlearn.cli.report import publish
from unlearn.errors import ConfigError, RunError
from unlearn.tracking.reader import read_runs
from unlearn.tracking.rundir import is_run, run_path

if TYPE_CHECKING:
    from unlearn.comparison.plan import Plan


def start(
    words: Sequence[str],
    methods: str | None,
    trials: int,
    seeds: str | None,
    gold: bool,
    attacks: str | None,
    reference: str | None,
    jobs: int | None,
    ledger: Path | None,
    out: Path | None,
) -> None:
    """Tune and measure what is missing, print the table, write the summary.

    Raises:
        UnlearnError: the configuration is wrong, or the ledger is another comparison's; nothing was run.
        typer.Exit: with 2 if a method failed, 130 if interrupted.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be >= 1; found {jobs}.")
    from unlearn.comparison import compare, read_plan
    from unlearn.report.comparison import comparison_lines

    files, overrides = split(words)
    plan = read_plan(
        files,
        overrides,
        methods=chosen(methods or "all"),
        trials=trials,
        seeds=how_many(seeds),
        suite=attacks or "quick",
        reference=reference,
        ledger=ledger,
        gold=gold,
    )
    begun = time.monotonic()

    def told(text: str) -> None:
        note(f"[{(time.monotonic() - begun) / 60:.1f} min] {text}")

    try:
        summary, failures = compare(plan, jobs or 1, told)
    except KeyboardInterrupt:
        note(Text(f"interrupted: what is done is in {plan.ledger}; the same command goes on", style="yellow"))
        raise typer.Exit(130) from None
    console().print(comparison_lines(summary, console().width))
    progress = summary["progress"]
    note(f"{progress['tests']} of {progress['tests_in_all']} tests are made; everything is in {plan.ledger}")
    tests = [path for method in summary["methods"] for path in _tests(plan, method)]
    if out is not None:
        publish(read_runs(tests), out, plan.ledger)
    for what, why in failures.items():
        complain(RunError(f"{what}: {why}"))
    if failures:
        raise typer.Exit(2)


def _tests(plan: Plan, method: str) -> list[Path]:
    """Folders of the test runs of ``method`` that are there."""
    configs = [plan.run(method, seed, {}) for seed in plan.seeds]
    return [path for config in configs if is_run(path := run_path(config.out, config.name))]


def how_many(seeds: str | None) -> list[int]:
    """``5`` is five seeds, 0 to 4; ``0,1`` and ``0-2`` are seeds; nothing is three.

    >>> how_many("2"), how_many("4-5"), how_many(None)
    ([0, 1], [4, 5], [0, 1, 2])
    """
    text = (seeds or "3").strip()
    if not text.isdigit():
        return seeds_of(text)
    if int(text) < 1:
        raise ConfigError(f"--seeds must be a number of seeds >= 1, or seeds such as 0-2; found {seeds!r}.")
    return list(range(int(text)))
