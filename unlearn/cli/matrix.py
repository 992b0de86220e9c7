"""``unlearn compare CONFIG --methods --seeds``: one configuration, many methods and seeds, and their summary."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.rule import Rule
from rich.text import Text

from unlearn.cli.arguments import load, split
from unlearn.cli.console import complain, console, note
from unlearn.cli.report import publish
from unlearn.config.layers import Layer, read_file
from unlearn.config.load import load_config
from unlearn.config.schema import MethodConfig, RunConfig
from unlearn.errors import ConfigError, UnlearnError, did_you_mean
from unlearn.launch import is_rank_zero, start_processes
from unlearn.meeting import Processes
from unlearn.registry import entries
from unlearn.tracking.files import write_atomic
from unlearn.tracking.reader import read_run

GOLD = "gold"
"""The row that ``--gold`` adds; not every source has such a model."""
SETS = ("all", "trained", "interventions")


def chosen(methods: str) -> list[str]:
    """Names of methods: ``all``, ``trained`` (weights change), ``interventions`` (nothing in the weights changes), or names with commas.

    Raises:
        ConfigError: a name is not known.
    """
    known = entries("method")
    acts = [name for name, entry in known.items() if entry.facts.get("intervention")]
    if methods in SETS:
        known = {name: entry for name, entry in known.items() if name != GOLD}
        wanted = {"all": list(known), "trained": [n for n in known if n not in acts], "interventions": ["none", *acts]}[methods]
        return sorted(wanted, key=lambda name: name != "none")
    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        if name not in known:
            offered = [*SETS, *known]
            raise ConfigError(f"--methods must be {', '.join(SETS)} or names of methods; found {name!r}.{did_you_mean(name, offered)}")
    return names


def seeds_of(text: str) -> list[int]:
    """``0,1,2`` or ``0-2``.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        parts = [part.split("-") for part in text.split(",")]
        return [seed for part in parts for seed in range(int(part[0]), int(part[-1]) + 1)]
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers such as 0,1,2 or 0-2; found {text!r}.") from None


def expand(words: Sequence[str], methods: str | None, seeds: str | None, gold: bool = False) -> list[RunConfig]:
    """Every run: methods (with their defaults) in the place of the configuration's own, times seeds; ``gold`` adds the gold model's row.

    Raises:
        ConfigError: something is wrong, or ``methods`` is given for a study that names its own.
    """
    if methods is None:
        runs = load(words)
    else:
        files, overrides = split(words)
        layers = [read_file(file) for file in files]
        study = next((layer.label for layer in layers if "runs" in layer.tree), None)
        if study:
            raise ConfigError(f"--methods takes a configuration of one run, whose method it replaces; found a study in {study}.")
        common = [dataclasses.replace(layer, tree={k: v for k, v in layer.tree.items() if k != "method"}) for layer in layers]
        named = [str(layer.tree["name"]) for layer in layers if layer.tree.get("name")]
        folder = named[-1] if named else Path(files[-1]).stem if files else "compare"
        runs = [load_config(common or [Layer({})], [*overrides, f"method.name={m}", f"name={folder}/{m}"]) for m in chosen(methods)]
    if gold:
        runs = _with_gold(runs)
    if seeds is None:
        return runs
    return [dataclasses.replace(run, seed=seed, name=f"{run.name}/seed{seed}") for run in runs for seed in seeds_of(seeds)]


def _with_gold(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """The runs measured against the source's gold model (unless they name one), and a run of that model."""
    against = [
        dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, gold=run.evaluation.gold or "source")) for run in runs
    ]
    if any(run.method.name == GOLD for run in against):
        return against
    first = against[0]
    study = first.name.rpartition("/")[0]
    own = dataclasses.replace(first, method=MethodConfig(name=GOLD), name=f"{study}/{GOLD}" if study else GOLD)
    return [own, *against]


def compare(words: Sequence[str], methods: str | None, seeds: str | None, out: Path | None, gold: bool = False) -> None:
    """Make every run that is not finished, then print and keep the summary; a run that fails does not stop the others.

    Raises:
        UnlearnError: the configuration is wrong; nothing was run.
        typer.Exit: with 2 if a run failed.
    """
    configs = expand(words, methods, seeds, gold)
    options = {"--methods": methods, "--seeds": seeds, "--out": out}
    said = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    start_processes([config.trainer for config in configs], ["compare", *words, *said, *(["--gold"] if gold else [])])
    from unlearn.run import execute

    paths: list[Path] = []
    failed: list[str] = []
    for number, config in enumerate(configs, 1):
        if is_rank_zero():
            console(stderr=True).print(Rule(Text(f"run {number} of {len(configs)}: {config.name}"), align="left", style="dim"))
        try:
            paths.append(execute(config))
        except UnlearnError as error:
            if Processes.broken():
                raise
            complain(error)
            failed.append(config.name)
    if paths and is_rank_zero():
        summarise(paths, out)
    if failed:
        if is_rank_zero():
            note(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}")
        raise typer.Exit(2)


def summarise(paths: Sequence[Path], out: Path | None) -> None:
    """Print the summary; write ``summary.json`` to the folder of the study, and a report to ``out``."""
    from unlearn.report.summary import marks_of, plain_summary, summary_table
    from unlearn.report.summary import summarise as means

    records = [read_run(path) for path in paths]
    found = means(records)
    console().print(summary_table(found, marks_of(records)))
    folder = next(parent for parent in paths[0].parents if all(path.is_relative_to(parent) for path in paths))
    write_atomic(folder / "summary.json", json.dumps(plain_summary(found), indent=2) + "\n")
    note(f"means and intervals of every result: {folder / 'summary.json'}")
    if out is not None:
        publish(records, out)
