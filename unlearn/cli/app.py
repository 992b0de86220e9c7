"""The commands."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from unlearn import __version__
from unlearn.cli.chat import chat_command
from unlearn.cli.config import config_app
from unlearn.cli.console import complain
from unlearn.cli.export import export_command
from unlearn.cli.rows import Words, collect_command, label_command
from unlearn.errors import UnlearnError

app = typer.Typer(
    name="unlearn",
    help="Make a language model forget entities: it should come to know no more of them than of names it has never met.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_app, name="config")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script. Exit status: 0 done, 1 a failed check, 2 something the user can put right, 75 saved and
    to be started again (SIGTERM or SIGUSR1 came), 130 interrupted."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says at every import which optional kernels it lacks
    try:
        app(None if arguments is None else list(arguments))
    except UnlearnError as error:
        complain(error)
        sys.exit(2)
    sys.exit(0)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unlearn {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Options that need no command."""


@app.command("run")
def run_command(
    words: Words = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the interrupted run in DIR.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Of a study, only this run; may be repeated, may hold *.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what is there already.")] = False,
    go_on: Annotated[bool, typer.Option("--continue", help="Go on with runs that the same command left unfinished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the configuration and say what would run.")] = False,
    help_config: Annotated[bool, typer.Option("--help-config", help="Explain every key; method=NAME and source=NAME add theirs.")] = False,
) -> None:
    """Train, measure and compare: one run, or all runs of a study one after the other."""
    from unlearn.cli import run

    if help_config:
        from unlearn.cli.config import help_command

        help_command(words)
    elif resume is not None:
        run.resume(resume, words or [], force=force)
    elif dry_run:
        run.preview(words or [], only or [])
    else:
        run.start(words or [], only or [], force=force, go_on=go_on)


@app.command("sweep")
def sweep_command(
    words: Words = None,
    trials: Annotated[int | None, typer.Option(metavar="N", min=1, help="Trials of the whole study; the file's if left out.")] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes on this machine; GPUs are shared out among them.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and say what would be searched.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show the study as it stands, wherever its workers are.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Leave when no trial is left to begin, though others are running.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed trials again.")] = False,
    as_worker: Annotated[bool, typer.Option("--as-worker", hidden=True)] = False,
) -> None:
    """Search for the best setting: a study of runs, on this machine or on many.

    The file says what is searched and what is wanted of the results (configs/sweeps has examples); KEY=VALUE overrides both keys of the
    sweep (trials=50) and of its runs (optim.steps=30). The same command goes on with a study after an interruption, and joins one that
    other machines work on (storage: a journal file on a shared disk, or PostgreSQL).
    """
    from unlearn.cli import sweep

    if dry_run:
        sweep.preview(words or [], trials)
    elif status:
        sweep.status(words or [], trials)
    elif as_worker:
        sweep.work(words or [], trials, wait=not no_wait)
    else:
        sweep.start(words or [], trials, workers, wait=not no_wait, again=retry_failed)


@app.command("compare")
def compare_command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... | CONFIG.yaml KEY=VALUE",
            help="Run folders, or a comparison's ledger; or a configuration of runs to make first.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a report: .html, .md or .tex, or a folder that gets all three; figures beside it."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Run these methods with their defaults: all, trained, interventions, or a,b,c.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,N", help="Run every setting with these seeds, such as 0-2.")] = None,
    gold: Annotated[
        bool, typer.Option("--gold", help="Add the model that never saw the forget entities, and measure the others against it.")
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tune every method first, with N trials on validation rows; then --seeds K is a number of seeds."),
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="With --trials: attacks of the test: quick (the default), full, a,b,c or none.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="METHOD", help="With --trials: the method that the others are tested against.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="With --trials: methods worked on at the same time.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --trials: folder of the files that say what is done; RUNS/NAME/results.")
    ] = None,
) -> None:
    """Put finished runs side by side, or make them first: a configuration, many methods and seeds, one summary.

    With --trials the comparison is a fair one: every method gets the same budget of trials on validation entities and wordings, and its
    best setting is measured with K seeds on test entities and wordings, attacks included. The same command goes on after an interruption.
    """
    asked = {"--attacks": attacks, "--reference": reference, "--jobs": jobs, "--ledger": ledger}
    if trials is not None:
        from unlearn.cli import comparison

        comparison.start(words, methods, trials, seeds, gold, attacks, reference, jobs, ledger, out)
        return
    if given := [name for name, value in asked.items() if value is not None]:
        raise typer.BadParameter(f"goes with --trials; found {given[0]} without it.", param_hint=given[0])
    if methods is None and seeds is None and not gold:
        from unlearn.cli import run

        run.compare([Path(word) for word in words], out)
        return
    from unlearn.cli.matrix import compare

    compare(words, methods, seeds, out, gold)


@app.command("evaluate")
def evaluate_command(
    model: Annotated[
        str,
        typer.Argument(metavar="DIR_OR_HUB_ID", help="A model's folder, a hub id, or the folder of a finished run.", show_default=False),
    ],
    words: Words = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A data source (`unlearn list sources`) or a key of the configuration's section `benchmarks`; may be repeated. "
            "Left out: every key of that section, else the source of section `data` or of the run.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the results, one below it for each benchmark; evaluations/MODEL if left out.", show_default=False
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_HUB_ID", help="The model that this one was made from, to measure what has changed.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again what is there already.")] = False,
) -> None:
    """Measure any model, or a finished run, on data sources; nothing is trained.

    Results have the keys of a run's. Answers, likelihood, membership, behaviour, utility, perplexity and repetition are measured of any
    model; recognition with an SAE (keys sae.*, or a run's own); KL, drift and the verdict on collapse with --base (a run knows its
    original model).

    A benchmark that is finished is kept, so that the same command goes on after an interruption.
    """
    from unlearn.cli.evaluate import start

    start(model, words or [], benchmark or [], out, base, force)


@app.command("attack")
def attack_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN_OR_DIR... [CONFIG.yaml] [KEY=VALUE]...",
            help="A finished run, a folder of runs, a model's folder or a hub id; then settings.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[str, typer.Option(metavar="NAME", help="quick, full, or names of attacks: relearn,steer.")] = "quick",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the results, for a model that is no run; attacks/MODEL if left out.", show_default=False
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="DIR_OR_HUB_ID", help="The model that this one was made from; a run knows it.", show_default=False)
    ] = None,
    gold: Annotated[bool, typer.Option("--gold", help="Attack the source's model that never saw the target as well.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make finished attacks again.")] = False,
    help_config: Annotated[bool, typer.Option("--help-config", help="Explain every key of every attack.")] = False,
) -> None:
    """Try to get the facts back: is the target forgotten, or only muted?

    Every attack is also made on unknown names with made-up facts; only what goes beyond that counts. The model is not changed. Results go
    to the run's results.json (keys attack/...), figures to its plots. Finished attacks are kept, so that the same command goes on after an
    interruption.
    """
    from unlearn.cli import attack

    if help_config:
        attack.explain()
    elif not words:
        raise typer.BadParameter("expected a run, a model's folder or a hub id; found none.", param_hint="RUN_OR_DIR")
    else:
        attack.start(words, suite, out, base, gold, force)


@app.command("list")
def list_command(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[methods|sources|makers|attacks]", help="What to list; everything if left out.", show_default=False),
    ] = None,
    readme: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables into a README instead.")] = None,
    check: Annotated[bool, typer.Option("--check", help="With --readme: only say whether it is up to date.")] = False,
) -> None:
    """Show the plug-ins: methods with their papers, data sources, makers of forget sets, attacks."""
    if readme is not None:
        from unlearn.cli.readme import update

        update(readme, check)
        return
    from unlearn.cli.catalogue import show

    show(kind)


@app.command("doctor")
def doctor_command(
    words: Words = None,
    label_entities: Annotated[
        bool, typer.Option("--label-entities", help="Also ask the model which of the source's names it knows.")
    ] = False,
    labels: Annotated[Path, typer.Option(metavar="FILE", help="With --label-entities: where the labels go.")] = Path("labels.json"),
    quick: Annotated[bool, typer.Option("--quick", help="Load no weights: leave the SAE's hook-point check to the run.")] = False,
    gpu_memory: Annotated[float | None, typer.Option(metavar="GB", help="Would it fit on a GPU with so much memory?")] = None,
    devices: Annotated[int | None, typer.Option(metavar="N", help="Count on so many devices over all nodes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings and numbers for programs.")] = False,
) -> None:
    """Check this machine; with a configuration also its data, models, memory, time and the power of its tests.

    Every finding is ok, warn or fail, with what to do about it; the exit status is 1 when a run would fail. Nothing is trained or written.
    """
    from unlearn.cli.doctor import Wishes, examine

    label = labels if label_entities else None
    raise typer.Exit(examine(words or [], Wishes(quick=quick, gpu_memory=gpu_memory, devices=devices, label=label, as_json=as_json)))


app.command("chat")(chat_command)
app.command("export")(export_command)
app.command("collect")(collect_command)
app.command("label")(label_command)
