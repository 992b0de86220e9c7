"""``unlearn sweep``: workers of this machine, the table while they work, and what came of it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unlearn.cli.arguments import split
from unlearn.cli.console import complain, console, note
from unlearn.config.fingerprint import fingerprint
from unlearn.config.sweep import SweepSpec, load_sweep
from unlearn.errors import PREEMPTED, ConfigError, Preempted, RunError

if TYPE_CHECKING:
    import optuna

    from unlearn.sweep.outcome import SweepOutcome
    from unlearn.sweep.workers import Workers

LOOK_S = 1.0
"""Seconds between two looks at the study."""
INTERRUPTED = 130


def read(words: Sequence[str], trials: int | None) -> SweepSpec:
    """The sweep that ``words`` describe.

    Raises:
        ConfigError: something is wrong.
    """
    files, overrides = split(words)
    if not words:
        raise ConfigError("expected a sweep file, such as unlearn sweep configs/sweeps/world_npo.yaml; found none.")
    spec = load_sweep(list(files), [*overrides, *([] if trials is None else [f"trials={trials}"])])
    from unlearn.launch import trainer_settings

    devices = trainer_settings(spec.example().trainer, {})["devices"]
    if devices not in ("auto", "1"):
        raise ConfigError(
            f"trainer.devices must be left out of a sweep, whose workers take one device each (--workers); found {devices!r}."
        )
    return spec


def preview(words: Sequence[str], trials: int | None) -> None:
    """Say what would be searched, without making a study."""
    spec = read(words, trials)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for p in spec.search:
        scale = f"{p.low:g} to {p.high:g}{', logarithmic' if p.log else ''}{f', in steps of {p.step:g}' if p.step else ''}"
        when = ", ".join(f"{key} is {' or '.join(map(str, allowed))}" for key, allowed in p.when.items())
        table.add_row(
            Text(p.key, style="cyan"), ", ".join(map(str, p.choices)) or scale, Text(f"where {when}" if when else "", style="dim")
        )
    for o in spec.objectives:
        table.add_row(Text(o.title, style="green"), o.direction)
    for c in spec.constraints:
        bounds = [f">= {c.low:g}" for _ in [0] if c.low is not None] + [f"<= {c.high:g}" for _ in [0] if c.high is not None]
        table.add_row(Text(c.key, style="green"), " and ".join(bounds))
    console().print(table)
    example = spec.example()
    sampler, pruner = spec.settings.sampler.name, spec.settings.pruner.name
    note(
        f"{spec.trials} trials by {sampler}{'' if pruner == 'none' else f', pruned by {pruner}'}, kept in {example.out}/{spec.name}; "
        f"the first: {example.method.name}, fingerprint {fingerprint(example)}. Nothing was run."
    )


def status(words: Sequence[str], trials: int | None) -> None:
    """Show the study as it stands, wherever its workers are.

    Raises:
        RunError: there is no such study.
    """
    import optuna

    from unlearn.sweep.engine import folder_of
    from unlearn.sweep.outcome import outcome_of
    from unlearn.sweep.storage import answering, journal_path, open_storage
    from unlearn.sweep.tables import headline, trial_table

    spec = read(words, trials)
    folder = folder_of(spec)
    journal = journal_path(spec, folder)
    names = []
    if journal is None or journal.is_file():
        with answering(spec):
            storage = open_storage(spec, folder)
            names = optuna.study.get_all_study_names(storage)
    if spec.name not in names:
        raise RunError(f"--status needs a study that was begun; found none of the name {spec.name!r} in {spec.settings.storage}.")
    outcome = outcome_of(spec, optuna.load_study(study_name=spec.name, storage=storage), folder)
    console().print(headline(outcome))
    console().print(trial_table(outcome, [trial for trial in outcome.trials if trial.state != "waiting"]))


def work(words: Sequence[str], trials: int | None, wait: bool) -> None:
    """What a worker process does."""
    from unlearn.sweep.engine import take_part
    from unlearn.sweep.workers import leave_with_starter

    leave_with_starter(sys.stdin.fileno())
    try:
        take_part(read(words, trials), wait=wait)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def start(words: Sequence[str], trials: int | None, workers: int, wait: bool, again: bool) -> None:
    """Make the trials that are still to be made, in ``workers`` processes, and print what came of it.

    Raises:
        UnlearnError: the configuration is wrong, the storage does not answer, or a worker could not go on.
        typer.Exit: with the status of a worker that could not go on, 130 if interrupted.
        Preempted: a scheduler's signal came, and the workers have saved.
    """
    from unlearn.sweep.engine import folder_of, open_study
    from unlearn.sweep.slots import plan
    from unlearn.sweep.storage import answering
    from unlearn.sweep.workers import Workers, status_of

    spec = read(words, trials)
    folder = folder_of(spec)
    study = open_study(spec, folder)
    with answering(spec):
        if again:
            plan(study, spec, spec.trials, again=True)
        said = [*([] if trials is None else ["--trials", str(trials)]), *([] if wait else ["--no-wait"])]
        team = Workers(["sweep", *words, *said, "--as-worker"], folder / "workers")
        code = _tend(team, study, spec, folder, workers)
        _conclude(study, spec, folder)
    for sentence in dict.fromkeys(s for worker in team.ended for s in worker.said()):
        complain(RunError(sentence))
    for worker in team.ended:
        if worker.code and worker.code > 0 and worker.code not in (INTERRUPTED, PREEMPTED) and not worker.said():
            note(f"a worker ended with status {worker.code}; {worker.log} says more")
    _leave(code or status_of(team.ended), [*words, *said])


def _tend(team: Workers, study: optuna.Study, spec: SweepSpec, folder: Path, count: int) -> int:
    """Start the workers and show the study until they have left; 130, or 75, where they were told to by Ctrl-C, or a scheduler."""
    from unlearn.sweep.outcome import outcome_of

    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        told.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        _watch(team, lambda: outcome_of(spec, study, folder), spec, count)
    except KeyboardInterrupt:
        note(Text("stopping: workers save and leave; press Ctrl-C again to stop at once", style="yellow"))
        team.stop(told[0] if told else signal.SIGINT)
        return PREEMPTED if told else INTERRUPTED
    finally:
        team.stop(signal.SIGTERM)
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _watch(team: Workers, look: Callable[[], SweepOutcome], spec: SweepSpec, count: int) -> None:
    """Show the study until no worker is left; one that was killed is replaced while there is something to do."""
    from unlearn.sweep.outcome import ENDED
    from unlearn.sweep.tables import line, live

    outcome = look()
    ended = {trial.number for trial in outcome.trials if trial.state in ENDED}
    open_trials = min(count, spec.trials - len(ended))
    for number in range(open_trials):
        team.start(number, open_trials)
    screen = console()
    foot = f"{open_trials} {'worker' if open_trials == 1 else 'workers'} here, logs in {team.folder}; Ctrl-C saves and leaves"
    replaced = 0
    with Live(live(outcome, foot), console=screen, refresh_per_second=4, transient=True) if screen.is_terminal else nullcontext() as shown:
        while team.running:
            time.sleep(LOOK_S)
            killed = [worker for worker in team.look() if (worker.code or 0) < 0]
            outcome = look()
            if shown is not None:
                shown.update(live(outcome, foot))
            for trial in outcome.trials:
                if trial.state in ENDED and trial.number not in ended:
                    ended.add(trial.number)
                    if shown is None:
                        screen.print(Text(line(outcome, trial)), soft_wrap=True)
            for worker in killed if len(ended) < spec.trials else ():
                note(f"a worker was killed (signal {-(worker.code or 0)}; {worker.log}); its trial is tried again")
                if replaced < spec.trials * (spec.settings.retries + 1):
                    team.start(replaced, open_trials)
                    replaced += 1


def _conclude(study: optuna.Study, spec: SweepSpec, folder: Path) -> None:
    """The best trials, the figures, and where everything is."""
    from unlearn.sweep.engine import keep
    from unlearn.sweep.tables import headline, ranked, trial_table

    outcome, files = keep(study, spec, folder)
    console().print(headline(outcome))
    best = ranked(outcome)
    if best:
        console().print(trial_table(outcome, best))
    for trial in outcome.trials:
        if trial.state == "failed":
            complain(RunError(f"trial {trial.number} failed: {trial.reason}"))
    note(f"kept in {folder}: {', '.join(path.name for path in files if path.parent == folder)}; figures in {folder}/plots")
    if outcome.best is not None:
        note(f"unlearn run {folder}/best.yaml runs the best setting once more")


def _leave(code: int, words: Sequence[str]) -> None:
    """End with an exit status, and say how to go on.

    Raises:
        typer.Exit: with 2 or 130.
        Preempted: for a scheduler's signal.
    """
    if code in (INTERRUPTED, PREEMPTED):
        note(Text(f"interrupted: unlearn sweep {' '.join(words)} goes on with it", style="yellow"))
    if code == PREEMPTED:
        raise Preempted("preempted: the workers have saved")
    if code:
        raise typer.Exit(code)
