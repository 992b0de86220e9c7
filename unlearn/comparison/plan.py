"""What a comparison compares, and how: methods, budget, seeds, and the configurations of tuning and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.config.attacks import SECTION, attack_settings, chosen_attacks
from unlearn.config.layers import Layer, read_any, read_override
from unlearn.config.load import Origin, load_config
from unlearn.config.schema import RunConfig
from unlearn.config.space import Space, default_point, method_space
from unlearn.errors import ConfigError, did_you_mean
from unlearn.registry import entries, find

REFERENCE = "sae_guided"
"""The method that the others are tested against, where nothing else is said."""
SPACES = "spaces"
"""Section of the file: further keys to turn, by method."""
NONE = "none"
VALIDATION: Mapping[str, Any] = {
    "data": {"partition": "validation"},
    "evaluation": {
        "every": 0,
        "null_draws": 0,
        "permutations": 1,
        "bootstrap": 0,
        "samples": 0,
        "gold": None,
        "places": False,
        "depth": False,
    },
    "trainer": {"progress_bar": False},
    "tracking": {"enabled": False},
}
"""Tuning measures what the score reads, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One comparison.

    ``base`` are the layers of a run without its method; ``attack`` those of the section ``attack``; ``spaces`` further keys to turn, by
    method. ``suite`` names attacks as ``unlearn attack --suite`` does, or is ``none``. ``gold`` measures against the source's gold model.
    """

    name: str
    base: tuple[Layer, ...]
    methods: tuple[str, ...]
    trials: int
    seeds: tuple[int, ...]
    reference: str
    ledger: Path
    suite: str = "quick"
    attack: tuple[Layer, ...] = ()
    spaces: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    gold: bool = False

    def tuned(self, method: str) -> bool:
        """Whether a method is tuned: it says what may be turned. Interventions and models of reference are measured as they are."""
        return tunable(method)

    def run(self, method: str, seed: int, params: Mapping[str, Any]) -> RunConfig:
        """The configuration of a test run.

        Raises:
            ConfigError: it does not make a run.
        """
        gold = [Layer({"evaluation": {"gold": "source"}})] if self.gold else []
        said = [Layer({"method": {"name": method}, "name": f"{self.name}/{method}/seed{seed}", "seed": seed}), nested(params)]
        return load_config([*self.base, *gold, *said])

    def validation(self, method: str) -> RunConfig:
        """The configuration that tuning starts from.

        Raises:
            ConfigError: it does not make a run.
        """
        return load_config([*self.base, *self.tuning_layers(method), Layer({"name": f"{self.name}/tuning/{method}"})])

    def tuning_layers(self, method: str) -> list[Layer]:
        """What tuning lays over ``base``."""
        return [Layer(VALIDATION), Layer({"method": {"name": method}})]

    def space(self, method: str) -> Space:
        """What is turned of a method."""
        return method_space(self.validation(method), self.spaces.get(method))

    def sweep(self, method: str) -> dict[str, Any]:
        """The sweep that tunes a method, as the tree of a sweep file; its first trial is the configuration's own setting."""
        space = self.space(method)
        point = default_point(self.validation(method), space)
        layers = [*self.base, *self.tuning_layers(method)]
        return {
            "sweep": f"{self.name}/tuning/{method}",
            "base": [dict(layer.tree) for layer in layers],
            "search": space,
            "objectives": {"score": "maximize"},
            "trials": self.trials,
            "sampler": {"name": "tpe", "startup": max(2, self.trials // 3)},
            "first": [point] if point else [],
        }

    def settings(self) -> dict[str, Any]:
        """What must be the same for files of one ledger to be compared: everything but methods and seeds."""
        return {
            "trials": self.trials,
            "attacks": self.suite,
            "gold": self.gold,
            "config": merged(self.base),
            "attack": merged(self.attack),
            "spaces": {method: dict(space) for method, space in self.spaces.items()},
        }


def tunable(method: str) -> bool:
    """Whether a method has a search space."""
    return "search" in find("method", method, "--methods").facts


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """The trees of layers laid over each other; keys that say where a run is made, not what comes out, left out."""
    tree: dict[str, Any] = {}
    for layer in layers:
        _lay(tree, layer.tree)
    return {key: value for key, value in tree.items() if key not in ("name", "out", "cache", "tracking", "trainer")}


def _lay(tree: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping):
            _lay(tree.setdefault(key, {}) if isinstance(tree.get(key, {}), dict) else tree, value)
        else:
            tree[key] = value


def nested(values: Mapping[str, Any]) -> Layer:
    """Dotted keys as a layer."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
    return Layer(tree)


def read_plan(
    sources: Sequence[Origin],
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    trials: int,
    seeds: Sequence[int],
    suite: str = "quick",
    reference: str | None = None,
    ledger: Path | None = None,
    gold: bool = False,
) -> Plan:
    """The comparison that files, overrides and options describe; everything about it is checked.

    Args:
        sources: files or mappings of one run, which may also have the sections ``attack`` and ``spaces``.
        overrides: ``key=value`` texts, they win.
        methods: names, in the order in which they are worked on.
        trials: tuning budget of every method, >= 1.
        seeds: seeds of the test; tuning takes the configuration's own.
        suite: attacks: ``quick``, ``full``, names with commas, or ``none``.
        reference: the method that the others are tested against; None takes ``sae_guided`` where it takes part, else the first tuned one.
        ledger: folder of the files; None takes ``results`` in the folder of the runs.
        gold: whether to add the gold model's row and measure against it.

    Raises:
        ConfigError: something is wrong; every method's configuration and space are built.
    """
    layers = [*(read_any(source) for source in sources), *(read_override(text) for text in overrides)]
    if study := next((layer.label for layer in layers if {"runs", "study"} & layer.tree.keys()), None):
        raise ConfigError(f"--trials takes a configuration of one run, whose method it replaces; found a study in {study}.")
    attack = tuple(Layer({SECTION: layer.tree[SECTION]}, layer.label) for layer in layers if SECTION in layer.tree)
    own = (SECTION, SPACES, "method", "name")
    base = tuple(Layer({k: v for k, v in layer.tree.items() if k not in own}, layer.label, layer.prefix) for layer in layers)
    named = [str(layer.tree["name"]) for layer in layers if layer.tree.get("name")]
    files = [Path(layer.label).stem for layer in layers if layer.label.endswith((".yaml", ".yml"))]
    name = [*files, "comparison"][0] if not named else named[-1]
    rows = list(dict.fromkeys([*(["gold"] if gold else []), *methods]))
    chosen = reference or (REFERENCE if REFERENCE in rows else next(filter(tunable, rows), ""))
    first = load_config([*(base or (Layer({}),)), Layer({"method": {"name": NONE}, "name": name})])
    plan = Plan(
        name=name,
        base=base,
        methods=tuple(sorted(rows, key=lambda method: _turn(method, chosen))),
        trials=trials,
        seeds=tuple(dict.fromkeys(seeds)),
        reference=chosen,
        ledger=ledger or Path(first.out) / name / "results",
        suite=suite,
        attack=attack,
        spaces=_spaces(layers),
        gold=gold,
    )
    _check(plan, first)
    return plan


def _turn(method: str, reference: str) -> int:
    """The reference first, so that an unfinished comparison can say something; then the rows that stand for nothing and everything done."""
    return 0 if method == reference else 1 if method in (NONE, "gold") else 2 if tunable(method) else 3


def _spaces(layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """The section ``spaces``.

    Raises:
        ConfigError: it names no method, or does not map keys to ranges.
    """
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for method, space in (layer.tree.get(SPACES) or {}).items():
            if method not in entries("method"):
                hint = did_you_mean(str(method), entries("method"))
                raise ConfigError(layer.problem(f"{SPACES}.{method}", f"must be a method; found {method!r}.{hint}"))
            if not isinstance(space, Mapping) or not all(isinstance(bounds, Mapping) for bounds in space.values()):
                raise ConfigError(layer.problem(f"{SPACES}.{method}", f"must map keys to ranges or choices; found {space!r}."))
            found.setdefault(method, {}).update(space)
    return found


def _check(plan: Plan, first: RunConfig) -> None:
    """Refuse what would fail later.

    Raises:
        ConfigError: every problem.
    """
    from unlearn.config.sweep import load_sweep

    problems: list[str] = []
    if plan.trials < 1:
        problems.append(f"--trials must be >= 1; found {plan.trials}.")
    if not plan.seeds:
        problems.append("--seeds must name a seed or more; found none.")
    if plan.reference not in plan.methods:
        hint = did_you_mean(plan.reference, plan.methods)
        problems.append(f"--reference must be one of the methods ({', '.join(plan.methods)}); found {plan.reference!r}.{hint}")
    if first.trainer.devices not in (None, "1", "auto") or first.trainer.num_nodes not in (None, 1):
        problems.append(
            f"trainer.devices must be 1 in a comparison, which runs methods side by side (--jobs); found {first.trainer.devices}."
        )
    if plan.suite != NONE:
        problems += _problems(lambda: attack_settings(plan.suite, plan.attack))
    for method in plan.methods:
        found = _problems(lambda method=method: plan.run(method, 0, {}))
        if plan.tuned(method):
            found += _problems(lambda method=method: load_sweep(plan.sweep(method)))
        problems += [f"{method}: {line}" for line in found]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _problems(work: Any) -> list[str]:
    try:
        work()
    except ConfigError as error:
        return list(error.problems)
    return []


def suite_names(suite: str) -> list[str]:
    """Names of the attacks of a suite; none of ``none``."""
    return [] if suite == NONE else chosen_attacks(suite)
