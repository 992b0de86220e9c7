"""Optuna's samplers and pruners, made so that a study that was killed and goes on makes the choices it would have made."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from unlearn.sweep.slots import slot_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState

    from unlearn.config.sweep import Parameter, SweepSpec


class Repeatable(BaseSampler):
    """A sampler that starts afresh for each trial, with a seed made of the study's seed and the trial's number.

    What it chooses then depends on those and on the finished trials only: not on how often the process was started, and two workers never
    draw the same random numbers.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """Take a function from a seed to a sampler."""
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Start afresh."""
        digest = hashlib.sha256(f"{self.seed}/{slot_of(trial)}".encode()).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.inner = self.make(int.from_bytes(digest[:4], "big"))
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler within."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As the sampler within."""
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """As the sampler within."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the sampler within."""
        self.inner.after_trial(study, trial, state, values)


def make_sampler(spec: SweepSpec) -> BaseSampler:
    """The sampler of a sweep; points of a grid are queued, not sampled."""
    config = spec.settings.sampler
    conditional = any(p.when for p in spec.search)

    def make(seed: int) -> BaseSampler:
        if config.name == "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return TPESampler(seed=seed, n_startup_trials=config.startup, multivariate=True, group=conditional)
        if config.name == "nsga2":
            return NSGAIISampler(seed=seed, population_size=config.population)
        return RandomSampler(seed=seed)

    return Repeatable(make, config.seed)


def make_pruner(spec: SweepSpec) -> optuna.pruners.BasePruner:
    """The pruner of a sweep."""
    config = spec.settings.pruner
    if config.name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=config.startup, n_warmup_steps=config.warmup)
    return optuna.pruners.NopPruner()


def choose(trial: optuna.Trial, search: Sequence[Parameter]) -> dict[str, Any]:
    """The values of a trial by key, of the parameters that take part in it."""
    values: dict[str, Any] = {}
    for parameter in search:
        if parameter.active(values):
            values[parameter.key] = parameter.meant(_suggest(trial, parameter))
    return values


def _suggest(trial: optuna.Trial, p: Parameter) -> Any:
    if p.choices:
        return trial.suggest_categorical(p.name, p.labels)
    if p.integer:
        return trial.suggest_int(p.name, int(p.low), int(p.high), log=p.log, step=int(p.step or 1))
    return trial.suggest_float(p.name, p.low, p.high, log=p.log, step=p.step)


def meant(params: dict[str, Any], search: Sequence[Parameter]) -> dict[str, Any]:
    """The values by key that a study kept under the names of parameters."""
    return {p.key: p.meant(params[p.name]) for p in search if p.name in params}
