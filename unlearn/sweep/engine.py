"""A worker of a study: takes trials from the queue until all are made."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from unlearn.config.fingerprint import diff, fingerprint, plain
from unlearn.config.sweep import SweepSpec
from unlearn.errors import RunError
from unlearn.sweep.figures import draw
from unlearn.sweep.outcome import RESULT, SweepOutcome, TrialRecord, outcome_of, record_of, write_outcome
from unlearn.sweep.parent import close_parent, parent_run
from unlearn.sweep.samplers import make_pruner, make_sampler
from unlearn.sweep.slots import DONE, ERROR, current, fail_lost, plan
from unlearn.sweep.storage import answering, open_storage
from unlearn.sweep.trial import Objective, Score
from unlearn.tracking.files import alone
from unlearn.tracking.rundir import run_path

SPEC = "spec"
"""Attribute of a study: what its values mean."""
IN_A_ROW = 3
"""Trials that fail one after the other with the same sentence before a worker stops."""
WAIT_S = 2.0
"""Seconds between two looks at trials of other workers, while there is nothing to do."""
log = logging.getLogger(__name__)


def run_sweep(
    spec: SweepSpec,
    *,
    score: Score | None = None,
    trials: int | None = None,
    wait: bool = True,
    again: bool = False,
    told: Callable[[TrialRecord], None] = lambda trial: None,
) -> SweepOutcome:
    """Make the trials of a study that are still to be made, in this process, and return the study as it then stands.

    Any number of processes, on any number of machines, may call it for the same study at once. A study that was interrupted or killed is
    gone on with: finished trials are kept, unfinished ones resumed.

    Args:
        spec: the study.
        score: the values of the objectives, in their order, from the results of a run; None reads ``spec.objectives`` from the results.
        trials: of the whole study; None takes those of ``spec``.
        wait: whether to wait for trials of other workers, and to take over those that are lost, when no other is left.
        again: whether trials that failed are tried again.
        told: called with every trial that this process has ended.

    Raises:
        RunError: the storage does not answer, holds another study of that name, or trial after trial fails with the same sentence.
        ConfigError: the results have no such key.
        KeyboardInterrupt: Ctrl-C; the trial is queued again.
        Preempted: a scheduler's signal; the same.
    """
    folder = folder_of(spec)
    study = open_study(spec, folder)
    try:
        take_part(spec, score=score, trials=trials, wait=wait, again=again, told=told)
    finally:
        with answering(spec):
            outcome, _ = keep(study, spec, folder, trials)
    return outcome


def take_part(
    spec: SweepSpec,
    *,
    score: Score | None = None,
    trials: int | None = None,
    wait: bool = True,
    again: bool = False,
    told: Callable[[TrialRecord], None] = lambda trial: None,
) -> None:
    """What a worker does: ``run_sweep``, but for what is written down about the whole study."""
    from unlearn.callbacks.guard import preemptible

    if score is not None and spec.settings.pruner.name != "none":
        raise RunError("pruner must be none where a function scores the trials, which it cannot during training.")
    folder = folder_of(spec)
    study = open_study(spec, folder)
    with answering(spec), preemptible():
        objective = Objective(spec, study, score=score, parent=parent_run(spec, study, spec.example().tracking, folder))
        _work(study, spec, objective, spec.trials if trials is None else trials, wait, again, told)


def keep(study: optuna.Study, spec: SweepSpec, folder: Path, trials: int | None = None) -> tuple[SweepOutcome, list[Path]]:
    """Write down the study as it stands: ``sweep.json``, ``best.yaml``, figures, and all of it with the study's MLflow run."""
    outcome = outcome_of(spec, study, folder, trials)
    with alone(folder / RESULT):
        files = [*write_outcome(outcome), *draw(study, outcome)]
    close_parent(study, spec.example().tracking, outcome, files)
    return outcome, files


def folder_of(spec: SweepSpec) -> Path:
    """Folder of the study's runs."""
    return run_path(spec.example().out, spec.name)


def open_study(spec: SweepSpec, folder: Path) -> optuna.Study:
    """The study, made where it is not there yet.

    Raises:
        RunError: the storage does not answer, or holds a study of that name with another search or other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage = open_storage(spec, folder)
    made = {"sampler": make_sampler(spec), "pruner": make_pruner(spec)}
    meaning = meaning_of(spec)
    try:
        study = optuna.create_study(storage=storage, study_name=spec.name, directions=[o.direction for o in spec.objectives], **made)
        study.set_user_attr(SPEC, meaning)
        study.set_metric_names([o.title for o in spec.objectives])
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=spec.name, storage=storage, **made)
        kept = study.user_attrs.get(SPEC, meaning)
        changed = [key for key, _, _ in diff(kept, meaning)]
        if changed:
            raise RunError(
                f"sweep must be the name of a new study, or of the same one; found a study {spec.name!r} in {spec.settings.storage} with "
                f"another {', '.join(changed[:3])}. Take another name, or delete that study."
            ) from None
    return study


def meaning_of(spec: SweepSpec) -> Any:
    """What must be the same for trials to belong to one study."""
    unset: tuple[Any, ...] = (None, False, (), {})
    return plain(
        {
            "search": {p.name: {k: v for k, v in vars(p).items() if k not in ("key", "name") and v not in unset} for p in spec.search},
            "objectives": {o.title: o.direction for o in spec.objectives},
            "constraints": {c.key: [c.low, c.high] for c in spec.constraints},
            "base": fingerprint(spec.example()),
            "attacks": spec.settings.attacks,
        }
    )


def _work(
    study: optuna.Study, spec: SweepSpec, objective: Objective, count: int, wait: bool, again: bool, told: Callable[[TrialRecord], None]
) -> None:
    """Take trials from the queue until all are made."""
    before = _ended(study)
    while True:
        lost = fail_lost(study, spec.settings.patience)
        if lost:
            log.warning("trials given up by lost workers, to be tried again: %s", lost)
        plan(study, spec, count, again=again)
        again = False
        trials = [trial for slot, trial in current(study.get_trials(deepcopy=False)).items() if slot < count]
        if any(trial.state == TrialState.WAITING for trial in trials):
            _take_one(study, objective)
            now = _ended(study)
            for slot in sorted(now.keys() - before.keys()):
                told(record_of(spec, slot, now[slot]))
            before = now
        elif wait and any(trial.state == TrialState.RUNNING for trial in trials):
            time.sleep(WAIT_S)
        else:
            return


def _ended(study: optuna.Study) -> dict[int, FrozenTrial]:
    return {s: t for s, t in current(study.get_trials(deepcopy=False)).items() if t.state in DONE or t.user_attrs.get(ERROR)}


def _take_one(study: optuna.Study, objective: Objective) -> None:
    """Make the next trial of the queue.

    Raises:
        RunError: one trial after the other fails with the same sentence.
    """
    try:
        study.optimize(objective, n_trials=1, catch=(Exception,), gc_after_trial=True)
    except (ValueError, UpdateFinishedTrialError) as error:
        log.warning("a trial was taken over by another worker: %s", error)
    if objective.stopped is not None:
        raise objective.stopped
    last = objective.errors[-IN_A_ROW:]
    if len(last) == IN_A_ROW and len(set(last)) == 1:
        raise RunError(
            f"{IN_A_ROW} trials in a row failed in the same way, and the others would: {last[0]} --retry-failed tries them again."
        )
