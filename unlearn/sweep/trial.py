"""One trial: a setting, an ordinary run of it, and what the study learns from its results."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial, TrialState

from unlearn.attack import attack
from unlearn.config.fingerprint import fingerprint
from unlearn.errors import ConfigError, Preempted, RunError, Stopped, UnlearnError, did_you_mean
from unlearn.run import execute
from unlearn.sweep.samplers import choose
from unlearn.sweep.slots import DONE, ERROR, INTERRUPTED, INTERRUPTIONS, SURPLUS, WORKER, current, identity, slot_of
from unlearn.tracking.reader import read_run
from unlearn.tracking.rundir import CONFIG, STATUS, run_path

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from unlearn.assembly import Assembly
    from unlearn.config.schema import RunConfig
    from unlearn.config.sweep import SweepSpec

Score = Callable[[Mapping[str, float]], Sequence[float]]
FINGERPRINT, PATH, SECONDS, SAME_AS, RESULTS = "fingerprint", "path", "seconds", "same_as", "results"
POLL_S = 1.0
"""Seconds between two looks at a trial of another worker."""
log = logging.getLogger(__name__)


class Surplus(Exception):
    """A trial that the study does not want: another worker was faster."""


class Fatal(Exception):
    """Something that would end every trial in the same way."""


class Objective:
    """What Optuna calls with a trial; returns its values, or raises."""

    def __init__(self, spec: SweepSpec, study: optuna.Study, *, score: Score | None, parent: str | None) -> None:
        """Make the trials of ``spec``; ``score`` takes the place of its objectives, ``parent`` is the study's MLflow run."""
        self.spec, self.study, self.score, self.parent = spec, study, score, parent
        self.stopped: BaseException | None = None
        """what the worker has to end with: an interrupt, or an error that is not the trial's"""
        self.errors: list[str] = []
        """sentences of the last trials, as long as they failed"""

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """Make one trial."""
        trial.set_user_attr(WORKER, identity())
        slot = self._wanted(trial)
        started = time.monotonic()
        try:
            values = self._values(trial, slot)
            self.errors = []
            return values
        except optuna.TrialPruned:
            self.errors = []
            raise
        except (KeyboardInterrupt, Preempted) as stop:
            self._interrupted(trial)
            self.stopped = stop
            raise Surplus("interrupted") from stop
        except Fatal as fatal:
            self._interrupted(trial)
            self.stopped = fatal.__cause__
            raise
        except Exception as error:
            said = str(error) if isinstance(error, UnlearnError) else f"{type(error).__name__}: {error}"
            self.errors.append(said)
            trial.set_user_attr(ERROR, said)
            if not isinstance(error, UnlearnError):
                log.exception("trial %s", slot)
            raise
        finally:
            spent = float(trial.user_attrs.get(SECONDS, 0.0))
            trial.set_user_attr(SECONDS, round(spent + time.monotonic() - started, 3))

    def _interrupted(self, trial: optuna.Trial) -> None:
        """Say that it was not the worker's fault, which may be lost only so often."""
        trial.set_user_attr(INTERRUPTED, True)
        trial.set_user_attr(INTERRUPTIONS, int(trial.user_attrs.get(INTERRUPTIONS, 0)) + 1)

    def _wanted(self, trial: optuna.Trial) -> int:
        """Place of the trial.

        Raises:
            Surplus: it was made because the queue was empty, or queued twice.
        """
        frozen = self._frozen(trial)
        slot = slot_of(frozen)
        mine = None if slot is None else current(self.study.get_trials(deepcopy=False)).get(slot)
        if slot is None or mine is None or mine.number != trial.number:
            trial.set_user_attr(SURPLUS, True)
            raise Surplus("another worker was faster")
        return slot

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        return next(t for t in self.study.get_trials(deepcopy=False) if t.number == trial.number)

    def _values(self, trial: optuna.Trial, slot: int) -> list[float]:
        config = self.spec.config(choose(trial, self.spec.search), slot)
        mark, path = fingerprint(config), run_path(config.out, config.name)
        trial.set_user_attr(FINGERPRINT, mark)
        same = self._same(trial, mark)
        if same is not None:
            return self._taken_over(trial, same)
        trial.set_user_attr(PATH, str(path))
        self._run(trial, slot, config, path)
        results = numbers(path)
        values = self._scored(results)
        self._constrain(trial, results)
        return values

    def _run(self, trial: optuna.Trial, slot: int, config: RunConfig, path: Path) -> None:
        """Make the run, or go on with it, and attack it."""
        tags = {"sweep": self.spec.name, "trial": str(slot), **({} if self.parent is None else {"mlflow.parentRunId": self.parent})}
        pruned = self.spec.settings.pruner.name != "none"
        try:
            execute(config, go_on=True, force=_leftover(path), tags=tags, watch=partial(self._watch, trial) if pruned else None)
        except Stopped as stopped:
            raise optuna.TrialPruned(str(stopped)) from stopped
        if self.spec.settings.attacks:
            told: dict[str, UnlearnError] = {}
            attack(str(path), ",".join(self.spec.settings.attacks), self.spec.attack, told=told.__setitem__)
            for error in told.values():
                raise error

    def _watch(self, trial: optuna.Trial, assembly: Assembly) -> list[Callback]:
        from unlearn.callbacks.watch import Watch

        objective, settings = self.spec.objectives[0], self.spec.settings.pruner

        def told(step: int, found: float) -> str:
            trial.report(objective.value(found), step)
            state = self._frozen(trial).state
            if state.is_finished():
                raise RunError("This worker gave no sign of life for too long, and another one took the trial over.")
            return f"pruned at step {step}: {objective.title} is worse than the median of the trials" if trial.should_prune() else ""

        return [Watch(assembly.suite, objective.key, assembly.config.evaluation.every, settings.rows, told)]

    def _same(self, trial: optuna.Trial, mark: str) -> FrozenTrial | None:
        """The trial that has made this very run; one that is making it is waited for."""
        while True:
            others = [t for t in current(self.study.get_trials(deepcopy=False)).values() if t.user_attrs.get(FINGERPRINT) == mark]
            others = [t for t in others if t.number != trial.number and SAME_AS not in t.user_attrs]
            done = next((t for t in others if t.state in DONE), None)
            if done is not None or not any(t.state == TrialState.RUNNING and t.number < trial.number for t in others):
                return done
            time.sleep(POLL_S)

    def _taken_over(self, trial: optuna.Trial, same: FrozenTrial) -> list[float]:
        """The values of a trial with the same fingerprint."""
        slot = slot_of(same)
        trial.set_user_attr(SAME_AS, slot)
        trial.set_user_attr(PATH, same.user_attrs.get(PATH))
        trial.set_user_attr(RESULTS, same.user_attrs.get(RESULTS, {}))
        for key, value in same.constraints.items():
            trial.set_constraint(key, value)
        if same.state == TrialState.PRUNED:
            for step, value in same.intermediate_values.items():
                trial.report(value, step)
            raise optuna.TrialPruned(f"the same setting as trial {slot}, which was pruned")
        return [float(value) for value in same.values or []]

    def _scored(self, results: Mapping[str, float]) -> list[float]:
        """The study's values of a run.

        Raises:
            Fatal: the results have no such key.
            RunError: a value is no number.
        """
        if self.score is not None:
            values = [float(value) for value in self.score(results)]
        else:
            values = [o.value(_named(results, o.key, "objectives")) for o in self.spec.objectives]
        for objective, value in zip(self.spec.objectives, values, strict=True):
            if math.isnan(value):
                raise RunError(f"objectives.{objective.key} must be a number; found nan in the results of the run.")
        return values

    def _constrain(self, trial: optuna.Trial, results: Mapping[str, float]) -> None:
        kept = {o.key: results[o.key] for o in self.spec.objectives if o.key in results}
        for constraint in self.spec.constraints:
            kept[constraint.key] = _named(results, constraint.key, "constraints")
            trial.set_constraint(constraint.key, constraint.excess(kept[constraint.key]))
        trial.set_user_attr(RESULTS, kept)


def _leftover(path: Path) -> bool:
    """Whether a run was stopped before anything says which one it was; its empty folders are removed."""
    if not path.is_dir() or (path / CONFIG).is_file():
        return False
    for part in ("checkpoints", "plots", "."):
        with suppress(OSError):
            (path / part).rmdir()
    return (path / STATUS).is_file()


def numbers(path: Path) -> dict[str, float]:
    """The results of a run that are numbers."""
    return {key: float(value) for key, value in read_run(path).results.items() if isinstance(value, int | float)}


def _named(results: Mapping[str, float], key: str, section: str) -> float:
    if key not in results:
        error = ConfigError(
            f"{section}.{key} must be a key of the results; found none of that name in results.json.{did_you_mean(key, results)}"
        )
        raise Fatal(str(error)) from error
    return results[key]
