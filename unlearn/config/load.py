"""YAML files and ``key=value`` overrides into frozen ``RunConfig`` objects; everything that is wrong is reported together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.config.build import Reading, Schemas
from unlearn.config.layers import Layer, read_any, read_override
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.errors import ConfigError, did_you_mean

Origin = str | Path | Mapping[str, Any] | Layer
"""A YAML file, or settings as a mapping."""

STUDY_KEYS = ("study", "common", "runs")


def load_config(
    source: Origin | Sequence[Origin], overrides: Sequence[str] = (), schemas: Schemas | None = None, root: type[RunConfig] = RunConfig
) -> RunConfig:
    """One run from one or more files (a later one wins) and overrides (they win over files).

    Args:
        source: a YAML file, a mapping, or several of them.
        overrides: ``key=value`` texts; values follow YAML's rules.
        schemas: see ``build.Schemas``; None takes the registry's plug-ins.
        root: what is built; a subclass has further sections.

    Raises:
        ConfigError: every unknown key, wrong type, wrong range and missing key, one sentence each.
    """
    layers, said, problems = _read(source, overrides)
    studies = [layer for layer in layers if _is_study(layer)]
    if studies:
        raise ConfigError([*problems, f"{studies[0].label or 'configuration'}: expected one run; found a study of several (key 'runs')."])
    return _build_all([[*layers, *said]], schemas, problems, root)[0]


def load_study(source: Origin | Sequence[Origin], overrides: Sequence[str] = (), schemas: Schemas | None = None) -> list[RunConfig]:
    """All runs of a study file, named ``<study>/<run>``; a plain run file is a study of one.

    A study file has the keys ``study`` (its name), ``common`` (settings of every run) and ``runs`` (a mapping of run names to what is
    special about each). Overrides apply to every run; ``study=NAME`` renames the study. Arguments and errors as in ``load_config``.
    """
    layers, said, problems = _read(source, overrides)
    studies = [layer for layer in layers if _is_study(layer)]
    if not studies:
        return _build_all([[*layers, *said]], schemas, problems)
    if len(studies) > 1:
        raise ConfigError(
            [*problems, f"{studies[1].label}: expected at most one study file; found a second one beside {studies[0].label}."]
        )
    at = next(i for i, layer in enumerate(layers) if layer is studies[0])
    name = _rename(said)
    runs = _expand(studies[0], name, problems)
    before, after = layers[:at], layers[at + 1 :]
    for layer in said:
        if "name" in layer.tree:
            problems.append(
                layer.problem("name", "must not be set for a study, whose runs have names of their own; study=NAME renames it.")
            )
    kept = [layer for layer in said if not {"study", "name"} & layer.tree.keys()]
    return _build_all([[*before, *own, *after, *kept, Layer({"name": run})] for run, own in runs], schemas, problems)


def _read(source: Origin | Sequence[Origin], overrides: Sequence[str]) -> tuple[list[Layer], list[Layer], list[str]]:
    """(layers of files, layers of overrides, problems); a file that cannot be read ends it, with every other such problem."""
    sources = [source] if isinstance(source, (str, Path, Mapping, Layer)) else list(source)
    problems: list[str] = []

    def attempt(read: Any, items: Sequence[Any]) -> list[Layer]:
        layers = []
        for item in items:
            try:
                layers.append(read(item))
            except ConfigError as error:
                problems.extend(error.problems)
        return layers

    layers = attempt(read_any, sources)
    unread = bool(problems)
    said = attempt(read_override, overrides)
    if unread or not layers:
        raise ConfigError(problems or "expected at least one configuration file; found none.")
    return layers, said, problems


def _is_study(layer: Layer) -> bool:
    return "study" in layer.tree or "runs" in layer.tree


def _rename(said: Sequence[Layer]) -> str | None:
    names = [layer.tree["study"] for layer in said if "study" in layer.tree]
    return str(names[-1]) if names else None


def _expand(study: Layer, rename: str | None, problems: list[str]) -> list[tuple[str, list[Layer]]]:
    """(name, layers: common, then its own) of each run; problems with the study's own keys are added to ``problems``."""
    for key in study.tree:
        if key not in STUDY_KEYS:
            hint = did_you_mean(str(key), STUDY_KEYS) or " Settings of every run belong under 'common'."
            problems.append(study.problem(str(key), f"is not a known key of a study.{hint}"))
    name = rename or study.tree.get("study")
    if not isinstance(name, str):
        problems.append(study.problem("study", f"must be the study's name, a text (str); found {name!r}."))
    runs = study.tree.get("runs")
    if not isinstance(runs, Mapping) or not runs:
        problems.append(study.problem("runs", f"must be a mapping of run names to settings, with at least one run; found {runs!r}."))
        runs = {}
    common = _part(study, "common", study.tree.get("common"), problems)
    return [(f"{name}/{run}", [common, _part(study, f"runs.{run}", own, problems)]) for run, own in runs.items()]


def _part(study: Layer, where: str, tree: Any, problems: list[str]) -> Layer:
    if tree is not None and not isinstance(tree, Mapping):
        problems.append(study.problem(where, f"must be a mapping of keys; found {tree!r}."))
    tree = dict(tree) if isinstance(tree, Mapping) else {}
    if "name" in tree:
        problems.append(study.problem(f"{where}.name", "must not be set; a run is named <study>/<its key under runs>."))
        del tree["name"]
    return Layer(tree, study.label, f"{where}.")


def _build_all(
    runs: Sequence[list[Layer]], schemas: Schemas | None, problems: list[str], root: type[RunConfig] = RunConfig
) -> list[RunConfig]:
    """The runs as objects; problems of all of them, without repetition, in one error."""
    schemas = plugin_schemas() if schemas is None else schemas
    built: list[RunConfig] = []
    for layers in runs:
        try:
            built.append(Reading(root, layers, schemas).build())
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return built
