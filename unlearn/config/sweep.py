"""Sweep files and ``key=value`` overrides into a checked ``SweepSpec``; everything that is wrong is reported together.

::

    sweep: npo
    base: {data: {source: world}, method: {name: npo}}
    search:
      optim.lr: {low: 1.0e-5, high: 1.0e-3, log: true}
      method.beta: {choices: [0.05, 0.1, 0.5]}
    objectives: {forget/accuracy_paraphrased: minimize}
    constraints: {retain/accuracy_unseen: {low: 0.95}}
    trials: 20
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.config.attacks import attack_settings
from unlearn.config.build import Reading
from unlearn.config.document import fields_of
from unlearn.config.layers import Layer, read_any, read_file, read_override
from unlearn.config.load import Origin
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.config.sweep_parts import Problems, read_constraints, read_objectives, read_search
from unlearn.config.sweep_schema import Constraint, Objective, Parameter, SweepSettings, SweepSpec, combinations, nested
from unlearn.errors import ConfigError, did_you_mean

SETTINGS = tuple(info.name for info in fields_of(SweepSettings))
OWN = ("base", "search", "objectives", "constraints", "first", "attack")
RUN_KEYS = tuple(info.name for info in fields_of(RunConfig))
MEASURED = ("latent/distance_to_known", "latent/distance_to_unknown", "latent/p_unknown", "latent/c2st_auc") + (
    "generic/perplexity",
    "generic/kl_to_base",
    "collapse/hidden_norm_drift",
)
"""Results that every run measures during training."""
ANSWERED = ("forget/accuracy", "forget/accuracy_paraphrased", "retain/accuracy", "retain/accuracy_unseen")
"""Results that a run with a pruner measures during training, on some rows."""


def is_sweep(path: Path) -> bool:
    """Whether a YAML file is a sweep."""
    return {"sweep", "search"} <= read_file(path).tree.keys()


def load_sweep(source: Origin | Sequence[Origin], overrides: Sequence[str] = ()) -> SweepSpec:
    """One sweep from one or more files or mappings (a later one wins) and overrides (they win).

    Args:
        source: files or mappings with the keys of a sweep; ``base`` is a file of a run, its keys, or a list of both.
        overrides: ``key=value``; keys of a sweep (``trials=10``, ``sampler.seed=1``), or of its runs (``optim.steps=20``), which also take
            the place of what is searched.

    Raises:
        ConfigError: every problem, one sentence each.
    """
    problems = Problems()
    layers = problems.each(read_any, [source] if isinstance(source, (str, Path, Mapping, Layer)) else source)
    said = problems.each(read_override, overrides)
    problems.stop()
    label = next((layer.label for layer in layers if layer.label), "")
    fixed = [layer for layer in said if layer.tree.keys() <= set(RUN_KEYS)]
    layers += [layer for layer in said if layer not in fixed]
    for layer in layers:
        _unknown_keys(layer, problems)
    settings = _settings(layers, problems)
    base = _base(layers, problems)
    search = _without_fixed(read_search(layers, problems), fixed)
    objectives = read_objectives(layers, problems)
    constraints = read_constraints(layers, problems)
    first = _first(layers, search, problems)
    attack = [Layer({"attack": layer.tree["attack"]}, layer.label) for layer in layers if "attack" in layer.tree]
    problems.stop()
    if settings is None:
        raise ConfigError(problems.found)
    spec = SweepSpec(
        name=settings.sweep, settings=settings, base=tuple(base), fixed=tuple(fixed), search=_typed(search, base, fixed), label=label,
        objectives=objectives, constraints=constraints, first=first, attack=tuple(attack),
    )  # fmt: skip
    _check_whole(spec, problems)
    problems.stop()
    return spec


def _unknown_keys(layer: Layer, problems: Problems) -> None:
    known = f" Known keys: {', '.join((*SETTINGS, *OWN))}."
    for key in layer.tree:
        if key in SETTINGS or key in OWN:
            continue
        hint = " Settings of the runs belong under 'base'." if key in RUN_KEYS else did_you_mean(str(key), [*SETTINGS, *OWN])
        problems.add(layer.problem(str(key), f"is not a known key of a sweep.{hint or known}"))


def _settings(layers: Sequence[Layer], problems: Problems) -> SweepSettings | None:
    """The typed part; ``sampler: tpe`` is short for ``sampler: {name: tpe}``."""
    short = ("sampler", "pruner")
    trees = []
    for layer in layers:
        tree = {key: value for key, value in layer.tree.items() if key in SETTINGS}
        tree |= {key: {"name": tree[key]} for key in short if isinstance(tree.get(key), str)}
        trees.append(Layer(tree, layer.label))
    return problems.attempt(lambda: Reading(SweepSettings, trees or [Layer({})], {}).build())


def _base(layers: Sequence[Layer], problems: Problems) -> list[Layer]:
    found: list[Layer] = []
    for layer in layers:
        given = layer.tree.get("base")
        for part in given if isinstance(given, list) else [] if given is None else [given]:
            if isinstance(part, Mapping):
                found.append(Layer(part, layer.label, "base."))
            elif isinstance(part, str):
                found += problems.each(read_file, [_beside(part, layer)])
            else:
                problems.add(layer.problem("base", f"must be a file, keys of a run, or a list of both; found {part!r}."))
    for layer in found:
        if {"study", "runs"} & layer.tree.keys():
            problems.add(f"{layer.label}: base must be one run; found a study of several (key 'runs').")
    return [Layer({key: value for key, value in layer.tree.items() if key != "name"}, layer.label, layer.prefix) for layer in found]


def _beside(name: str, layer: Layer) -> Path:
    """A file named in a sweep file: from the current folder, or from the sweep file's."""
    path = Path(name).expanduser()
    other = Path(layer.label).parent / path
    return other if not path.exists() and layer.label and other.exists() else path


def _without_fixed(search: Sequence[Parameter], fixed: Sequence[Layer]) -> tuple[Parameter, ...]:
    """The parameters that no override has fixed, and conditions on fixed ones decided."""
    said = {key: value for layer in fixed for key, value in _leaves(layer.tree).items()}
    kept = []
    for parameter in search:
        decided = {key: allowed for key, allowed in parameter.when.items() if key in said}
        if parameter.key in said or any(said[key] not in allowed for key, allowed in decided.items()):
            continue
        rest = {key: allowed for key, allowed in parameter.when.items() if key not in said}
        kept.append(dataclasses.replace(parameter, when=rest))
    return tuple(kept)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _first(layers: Sequence[Layer], search: Sequence[Parameter], problems: Problems) -> tuple[Mapping[str, Any], ...]:
    """Settings to be tried first, by the names of parameters; a key with several ranges takes the one whose condition holds."""
    found = []
    for layer in layers:
        given = layer.tree.get("first") or []
        if not isinstance(given, list) or not all(isinstance(point, Mapping) for point in given):
            problems.add(layer.problem("first", f"must be a list of settings, each a mapping of searched keys to values; found {given!r}."))
            continue
        for number, point in enumerate(given):
            found.append(_point(layer, f"first[{number}]", _leaves(point), search, problems))
    return tuple(found)


def _point(layer: Layer, where: str, values: Mapping[str, Any], search: Sequence[Parameter], problems: Problems) -> dict[str, Any]:
    keys = [p.key for p in search]
    for key in values.keys() - set(keys):
        problems.add(layer.problem(where, f"must name searched keys; found {key!r}.{did_you_mean(key, keys)}"))
    point = {}
    for p in search:
        if p.key not in values or not p.active(values):
            continue
        value = values[p.key]
        if value in p.choices or (not p.choices and isinstance(value, int | float) and p.low <= value <= p.high):
            point[p.name] = p.labels[p.choices.index(value)] if p.choices else value
        else:
            bounds = f"one of {', '.join(map(str, p.choices))}" if p.choices else f"in [{p.low:g}, {p.high:g}]"
            problems.add(layer.problem(f"{where}.{p.key}", f"must be {bounds}, as under search; found {value!r}."))
    return point


def _readings(search: Sequence[Parameter], base: Sequence[Layer], fixed: Sequence[Layer], label: str) -> list[Reading]:
    """Readings of runs that together hold every choice and every end of a range once, for each way in which conditions can come out."""
    conditions = {key for p in search for key in p.when}
    corners: list[dict[str, Any]] = []
    for chosen in combinations([p for p in search if p.key in conditions]):
        values = {p.key: value for p, value in chosen}
        free = [p for p in search if p.key not in conditions and p.active(values)]
        rows = max([len(p.choices) or 2 for p in free], default=1)
        ends = {p.key: list(p.choices) or [p.low, p.high] for p in free}
        corners += [{**values, **{key: found[row % len(found)] for key, found in ends.items()}} for row in range(rows)]
    schemas = plugin_schemas()
    name = Layer({"name": "trial"})
    return [Reading(RunConfig, [*base, nested(values, label), *fixed, name], schemas) for values in corners]


def _typed(search: Sequence[Parameter], base: Sequence[Layer], fixed: Sequence[Layer]) -> tuple[Parameter, ...]:
    """The parameters, those that stand for whole numbers marked so."""
    hints: dict[str, Any] = {}
    for reading in _readings(search, base, fixed, ""):
        hints |= reading.hints

    def whole(p: Parameter) -> bool:
        return not p.choices and hints.get(p.key) in (int, int | None) and (p.step is None or p.step == round(p.step))

    return tuple(dataclasses.replace(p, integer=True) if whole(p) else p for p in search)


def _check_whole(spec: SweepSpec, problems: Problems) -> None:
    """Every run that the sweep can make is one, and sampler, pruner, attacks and objectives fit each other."""
    for reading in _readings(spec.search, spec.base, spec.fixed, spec.label):
        problems.attempt(reading.build)
    settings = spec.settings
    problems.attempt(lambda: settings.attacks and attack_settings(",".join(settings.attacks), spec.attack))
    where = f"{spec.label}: " if spec.label else ""
    if settings.sampler.name == "grid":
        for p in spec.search:
            if not p.choices and p.step is None and not (p.integer and not p.log):
                problems.add(f"{where}search.{p.key} must have choices or a step for the sampler grid; found a range without.")
    if settings.pruner.name != "none":
        _check_pruner(spec, where, problems)
        example = None if problems.found else spec.example()
        if example is not None and example.evaluation.every < 1:
            problems.add(f"{where}base.evaluation.every must be >= 1 with a pruner; found {example.evaluation.every}.")
    for key in (*(o.key for o in spec.objectives), *(c.key for c in spec.constraints)):
        if key.startswith("attack/") and not settings.attacks:
            problems.add(f"{where}attacks must name the attack that measures {key!r}, such as [relearn]; found none.")


def _check_pruner(spec: SweepSpec, where: str, problems: Problems) -> None:
    name = spec.settings.pruner.name
    if len(spec.objectives) > 1:
        problems.add(
            f"{where}pruner must be none with several objectives, which Optuna does not prune; found {name!r} with {len(spec.objectives)}."
        )
        return
    key = spec.objectives[0].key
    if key not in (*MEASURED, *ANSWERED):
        known = ", ".join((*ANSWERED, *MEASURED))
        problems.add(f"{where}pruner must be none with the objective {key!r}, which is not measured during training; measured are {known}.")


__all__ = ["Constraint", "Objective", "Parameter", "SweepSpec", "is_sweep", "load_sweep"]
