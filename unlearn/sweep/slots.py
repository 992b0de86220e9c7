"""Which trials a study has still to make, so that N workers that come and go make exactly the wanted number.

Trials have places (slots 0, 1, ...), which are queued one after the other; workers take them from the queue, which the storage hands out
once each. Where two workers queue the same slot at once, the first of the two trials counts. A trial whose worker was lost, or was
interrupted, is queued again with the values it had.
"""

from __future__ import annotations

import copy
import os
import socket
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from optuna.study import Study

    from unlearn.config.sweep import SweepSpec

SLOT, ERROR, INTERRUPTIONS, INTERRUPTED, SURPLUS, WORKER = "slot", "error", "interruptions", "interrupted", "surplus", "worker"
"""Attributes of a trial in the study."""
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def slot_of(trial: FrozenTrial) -> int | None:
    """Place of a trial among the wanted ones; None for one that nobody wanted."""
    found = trial.user_attrs.get(SLOT)
    return None if found is None else int(found)


def attempt_of(trial: FrozenTrial) -> int:
    """How many trials before it had the same place and were lost."""
    return len(trial.system_attrs.get("retry_history", ()))


def current(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that counts for each slot: of the last attempt, the first (another one was queued twice by accident)."""
    found: dict[int, FrozenTrial] = {}
    for trial in trials:
        slot = slot_of(trial)
        if slot is None or trial.user_attrs.get(SURPLUS):
            continue
        before = found.get(slot)
        if before is None or (attempt_of(trial), -trial.number) > (attempt_of(before), -before.number):
            found[slot] = trial
    return found


def plan(study: Study, spec: SweepSpec, trials: int, *, again: bool = False) -> None:
    """Queue what was lost (``again``: and what failed), and, where the queue is empty, the next slot that has no trial.

    No more than one new trial waits at a time, so that one that was lost comes before those that were never begun, and the samplers see
    the trials in the order of their slots.
    """
    known = current(study.get_trials(deepcopy=False))
    waiting = any(trial.state == TrialState.WAITING for trial in known.values())
    for slot, trial in known.items():
        if slot < trials and trial.state == TrialState.FAIL and _wanted_again(trial, spec, again):
            waiting = True
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, _cleared(trial))
    missing = [slot for slot in range(trials) if slot not in known][:1]
    for slot in missing if not waiting else ():
        points = spec.points()
        study.enqueue_trial(dict(points[slot]) if slot < len(points) else {}, user_attrs={SLOT: slot})


def _wanted_again(trial: FrozenTrial, spec: SweepSpec, again: bool) -> bool:
    if trial.user_attrs.get(ERROR):
        return again
    lost = attempt_of(trial) + 1 - int(trial.user_attrs.get(INTERRUPTIONS, 0))
    return lost <= spec.settings.retries


def _cleared(trial: FrozenTrial) -> FrozenTrial:
    """The trial as its next attempt starts: without what was said of its end."""
    cleared = copy.deepcopy(trial)
    cleared.user_attrs = {key: value for key, value in cleared.user_attrs.items() if key not in (ERROR, INTERRUPTED, WORKER)}
    cleared.system_attrs = {key: value for key, value in cleared.system_attrs.items() if not key.startswith("constraints")}
    return cleared


def fail_lost(study: Study, patience: float) -> list[int]:
    """Give up running trials whose worker is gone; their slots.

    Optuna does so for those without a sign of life; workers of this machine are looked for by their process, and a trial that was taken
    from the queue by a process that never said who it was is given up after ``patience`` seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        before = [t.number for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        silent = worker is None and trial.datetime_start is not None and _age(trial.datetime_start) > patience
        if silent or (worker is not None and _gone(worker)):
            with suppress(UpdateFinishedTrialError):  # another worker saw it, too
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    after = {t.number: t for t in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))}
    return [slot for number in before if number in after and (slot := slot_of(after[number])) is not None]


def _age(started: datetime) -> float:
    return time.time() - started.timestamp()


@cache
def machine() -> str:
    """This machine, this boot of it, and this container of it: where process ids mean what they say."""
    parts = [socket.gethostname()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(file)
        if path.exists():
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
    return "/".join(parts)


def identity() -> dict[str, Any]:
    """This process, in words that others can check."""
    import psutil

    return {"machine": machine(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _gone(worker: Mapping[str, Any]) -> bool:
    """Whether a worker of this machine has ended."""
    if worker.get("machine") != machine():
        return False
    import psutil

    try:
        process = psutil.Process(int(worker["pid"]))
        return abs(process.create_time() - float(worker["started"])) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
