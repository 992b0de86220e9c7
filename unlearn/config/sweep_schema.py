"""What a sweep consists of: parameters, objectives, constraints, sampler and pruner."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from omegaconf import MISSING

from unlearn.config.checks import check, one_of
from unlearn.config.layers import Layer
from unlearn.config.load import load_config
from unlearn.config.schema import RunConfig
from unlearn.config.secrets import hide_secrets, holds_password

SAMPLERS = ("tpe", "nsga2", "random", "grid")
PRUNERS = ("none", "median")
STORAGES = ("journal", "sqlite", "postgresql")
TRIALS = 20
"""Trials of a study that names no number."""
Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the next setting is chosen."""

    name: str = "tpe"
    """tpe (tree-structured Parzen estimator), nsga2 (evolution, several objectives), random, or grid (every combination)"""
    seed: int = 0
    """seed of the choices; with it, the number of a trial and the finished trials, a choice can be repeated"""
    startup: int = 10
    """of tpe: finished trials before it takes over from random choices, >= 1"""
    population: int = 20
    """of nsga2: trials of one generation, >= 2"""

    def __post_init__(self) -> None:
        one_of(self.name, SAMPLERS, "sampler.name")
        check(self.seed >= 0, "sampler.seed", ">= 0", self.seed)
        check(self.startup >= 1, "sampler.startup", ">= 1", self.startup)
        check(self.population >= 2, "sampler.population", ">= 2", self.population)


@dataclass(frozen=True, kw_only=True)
class PrunerConfig:
    """Which trials are ended early; only with one objective, from what is measured every `evaluation.every` steps of training."""

    name: str = "none"
    """none, or median (worse than the median of the other trials at the same step)"""
    startup: int = 5
    """finished trials before any is ended early, >= 0"""
    warmup: int = 0
    """steps of a trial before it may be ended, >= 0"""
    rows: int = 64
    """rows of an evaluation set that are asked at each measurement, >= 1"""

    def __post_init__(self) -> None:
        one_of(self.name, PRUNERS, "pruner.name")
        check(self.startup >= 0, "pruner.startup", ">= 0", self.startup)
        check(self.warmup >= 0, "pruner.warmup", ">= 0", self.warmup)
        check(self.rows >= 1, "pruner.rows", ">= 1", self.rows)


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Keys of a sweep file beside `base`, `search`, `objectives`, `constraints`, `first` and `attack`."""

    sweep: str = MISSING
    """name of the study; its trials are kept in <out>/<sweep>/trial_NNN"""
    trials: int | None = None
    """trials of the study, >= 1; null takes 20, or the whole grid"""
    storage: str = "journal"
    """where the study is kept: journal (a file beside the runs), journal:///FILE, sqlite:///FILE, or postgresql://user@host/database"""
    retries: int = 2
    """how often a trial is tried again after its worker was lost, >= 0"""
    heartbeat: int = 30
    """seconds between two signs of life of a worker, >= 1"""
    patience: int = 180
    """seconds without a sign of life after which a worker counts as lost, > heartbeat"""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """how settings are chosen"""
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    """which trials are ended early"""
    attacks: list[str] = field(default_factory=list)
    """attacks made on the model of each trial, so that attack/... can be an objective; `unlearn list attacks` shows them"""

    def __post_init__(self) -> None:
        check(self.trials is None or self.trials >= 1, "trials", ">= 1", self.trials)
        check(self.retries >= 0, "retries", ">= 0", self.retries)
        check(self.heartbeat >= 1, "heartbeat", ">= 1", self.heartbeat)
        check(self.patience > self.heartbeat, "patience", "> heartbeat", self.patience)
        kind = self.storage.partition(":")[0].partition("+")[0]
        one_of(kind, STORAGES, "storage")
        check(
            not holds_password(self.storage),
            "storage",
            "an address without a password, which belongs into the environment (PGPASSWORD) or a file (PGPASSFILE)",
            hide_secrets(self.storage),
        )


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched key: a range (``low``, ``high``) or ``choices``; it takes part where every key of ``when`` has one of its values."""

    key: str
    name: str
    """its name in the study: the key, and the condition where a key has several ranges"""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    integer: bool = False
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether it takes part beside ``values`` of other keys."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())

    @property
    def labels(self) -> tuple[Scalar, ...]:
        """The choices as a study can keep them: lists and mappings as their JSON text."""
        return tuple(value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value) for value in self.choices)

    def meant(self, label: Any) -> Any:
        """The choice behind a label, or the number itself."""
        return self.choices[self.labels.index(label)] if self.choices else label

    def points(self) -> list[Any]:
        """Every value in a grid; ends of a range without ``step``."""
        if self.choices:
            return list(self.choices)
        step = self.step or (1 if self.integer and not self.log else None)
        if step is None:
            return [self.low, self.high]
        count = int((self.high - self.low) / step + 1e-9) + 1
        found = [self.low + i * step for i in range(count)]
        return [round(x) for x in found] if self.integer else found


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A result to be made small, large, or close to a number."""

    key: str
    direction: str
    """minimize or maximize; what is close to a number has its distance minimised"""
    near: float | None = None

    def value(self, found: float) -> float:
        """What the study sees of a result."""
        return found if self.near is None else abs(found - self.near)

    @property
    def title(self) -> str:
        """Short words for tables and figures."""
        return self.key if self.near is None else f"|{self.key} - {self.near:g}|"


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """Bounds that a result must keep for a trial to be the best one."""

    key: str
    low: float | None = None
    high: float | None = None

    def excess(self, found: float) -> float:
        """How far a result is beyond its bounds; <= 0 where it keeps them."""
        return max([low - found for low in [self.low] if low is not None] + [found - high for high in [self.high] if high is not None])


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A checked sweep. ``base`` and ``fixed`` are layers of the run's configuration, below and above what is searched."""

    name: str
    settings: SweepSettings
    base: tuple[Layer, ...]
    fixed: tuple[Layer, ...]
    search: tuple[Parameter, ...]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    first: tuple[Mapping[str, Any], ...] = ()
    attack: tuple[Layer, ...] = ()
    label: str = ""

    @property
    def trials(self) -> int:
        """Trials of the whole study; of a grid, no more than it has points."""
        if self.settings.sampler.name != "grid":
            return self.settings.trials or TRIALS
        whole = len(self.grid())
        return min(self.settings.trials or whole, whole)

    def config(self, values: Mapping[str, Any], number: int = 0) -> RunConfig:
        """The configuration of a trial, from the values of the keys that take part.

        Raises:
            ConfigError: it does not make a run.
        """
        return load_config([*self.base, nested(values, self.label), *self.fixed, Layer({"name": f"{self.name}/trial_{number:03d}"})])

    def example(self) -> RunConfig:
        """A run that the sweep can make: the first value of everything."""
        values: dict[str, Any] = {}
        for parameter in self.search:
            if parameter.active(values):
                values[parameter.key] = parameter.points()[0]
        return self.config(values)

    def points(self) -> list[Mapping[str, Any]]:
        """Settings of the first trials, by the names of parameters: the whole grid, or those that are given."""
        return list(self.grid()) if self.settings.sampler.name == "grid" else list(self.first)

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the points of all parameters, by their names, conditions kept."""
        return [{p.name: p.labels[p.choices.index(v)] if p.choices else v for p, v in point} for point in combinations(self.search)]


def combinations(search: Sequence[Parameter]) -> Iterator[list[tuple[Parameter, Any]]]:
    """Every combination of points, as pairs of a parameter that takes part and its value."""

    def grow(chosen: list[tuple[Parameter, Any]], rest: Sequence[Parameter]) -> Iterator[list[tuple[Parameter, Any]]]:
        if not rest:
            yield chosen
            return
        first, others = rest[0], rest[1:]
        if not first.active({p.key: value for p, value in chosen}):
            yield from grow(chosen, others)
            return
        for (value,) in product(first.points()):
            yield from grow([*chosen, (first, value)], others)

    yield from grow([], search)


def nested(values: Mapping[str, Any], label: str = "") -> Layer:
    """Dotted keys as a layer, which speaks of them as of keys of ``search``."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
    return Layer(tree, label, "search.")
