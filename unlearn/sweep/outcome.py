"""What came of a study, read from its storage."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from unlearn.config.fingerprint import plain, to_yaml
from unlearn.sweep.samplers import meant
from unlearn.sweep.slots import ERROR, INTERRUPTED, attempt_of, current
from unlearn.sweep.trial import FINGERPRINT, PATH, RESULTS, SAME_AS, SECONDS
from unlearn.tracking.files import dump_json, write_atomic

if TYPE_CHECKING:
    from unlearn.config.schema import RunConfig
    from unlearn.config.sweep import SweepSpec

STATES: Mapping[TrialState, str] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
ENDED = ("finished", "pruned", "failed")
RESULT = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a study.

    ``state`` is finished, pruned, failed, lost or interrupted (both to be tried again), running or waiting. ``params`` are the keys
    that took part; ``values`` those of the objectives, in their order (empty unless finished); ``results`` the run's results that
    objectives and constraints read. ``same_as`` is the number of the trial whose values were taken, as it has the same fingerprint.
    ``reason`` says why a trial failed; ``attempts`` counts workers that began it.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    values: tuple[float, ...] = ()
    results: Mapping[str, float] = field(default_factory=dict)
    feasible: bool = True
    path: Path | None = None
    fingerprint: str | None = None
    seconds: float = 0.0
    reason: str = ""
    same_as: int | None = None
    attempts: int = 1
    started: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """A study as it stands.

    ``wanted`` trials are to be made. ``front`` holds the finished ones that keep all constraints and that no other one beats in every
    objective, by number; with one objective that is ``best`` alone. ``best`` is, with several objectives, the first of the front by the
    first objective; None where no trial keeps the constraints.
    """

    name: str
    folder: Path
    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    wanted: int
    trials: tuple[TrialRecord, ...]
    front: tuple[TrialRecord, ...] = ()
    best: TrialRecord | None = None
    best_config: RunConfig | None = None

    @property
    def best_params(self) -> Mapping[str, Any]:
        """Searched keys of the best trial; empty where there is none."""
        return {} if self.best is None else self.best.params

    @property
    def done(self) -> int:
        """Trials that are over."""
        return sum(self.count(state) for state in ENDED)

    def count(self, state: str) -> int:
        """Trials in a state."""
        return sum(trial.state == state for trial in self.trials)

    def record(self) -> dict[str, Any]:
        """Plain values, as in ``sweep.json``."""
        return {
            "sweep": self.name,
            "objectives": dict(zip(self.objectives, self.directions, strict=True)),
            "best": None if self.best is None else self.best.number,
            "front": [trial.number for trial in self.front],
            "trials": [
                {**asdict(t), "path": None if t.path is None else str(t.path), "started": t.started and t.started.isoformat()}
                for t in self.trials
            ],
            "best_config": None if self.best_config is None else plain(self.best_config),
        }


def outcome_of(spec: SweepSpec, study: optuna.Study, folder: Path, trials: int | None = None) -> SweepOutcome:
    """The study as it stands; ``trials`` are wanted in the place of those of ``spec``."""
    slots = current(study.get_trials(deepcopy=False))
    records = tuple(record_of(spec, slot, slots[slot]) for slot in sorted(slots))
    finished = [trial for trial in records if trial.state == "finished" and trial.feasible]
    signs = [1.0 if o.direction == "minimize" else -1.0 for o in spec.objectives]
    losses = {t.number: tuple(s * v for s, v in zip(signs, t.values, strict=True)) for t in finished}
    front = tuple(t for t in finished if not any(_beats(losses[o.number], losses[t.number]) for o in finished))
    front = front if len(spec.objectives) > 1 else front[:1]  # of equals, the first
    best = min(front, key=lambda t: (losses[t.number], t.number), default=None)
    return SweepOutcome(
        name=spec.name,
        folder=folder,
        wanted=spec.trials if trials is None else trials,
        objectives=tuple(o.title for o in spec.objectives),
        directions=tuple(o.direction for o in spec.objectives),
        trials=records,
        front=front,
        best=best,
        best_config=None if best is None else spec.config(best.params, best.number),
    )


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def record_of(spec: SweepSpec, slot: int, trial: FrozenTrial) -> TrialRecord:
    """A trial of the study in words of its own."""
    said = trial.user_attrs
    state, error = STATES[trial.state], str(said.get(ERROR, ""))
    if state == "failed" and not error:
        state = "interrupted" if said.get(INTERRUPTED) else "lost"
    path = said.get(PATH)
    return TrialRecord(
        number=slot,
        state=state,
        params=meant(trial.params, spec.search),
        values=tuple(trial.values or ()) if trial.state == TrialState.COMPLETE else (),
        results=said.get(RESULTS, {}),
        feasible=all(value <= 0 for value in trial.constraints.values()),
        path=None if path is None else Path(path),
        fingerprint=said.get(FINGERPRINT),
        seconds=float(said.get(SECONDS, 0.0)),
        reason=error,
        same_as=said.get(SAME_AS),
        attempts=attempt_of(trial) + 1,
        started=None if trial.datetime_start is None else trial.datetime_start.astimezone(UTC),
    )


def table(outcome: SweepOutcome) -> str:
    """All trials as CSV: number, state, values, settings, seconds, folder of the run."""
    keys = list(dict.fromkeys(key for trial in outcome.trials for key in trial.params))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "state", *outcome.objectives, *keys, "seconds", "run"])
    for trial in outcome.trials:
        values = trial.values or [None] * len(outcome.objectives)
        rows.writerow([trial.number, trial.state, *values, *(trial.params.get(key) for key in keys), trial.seconds, trial.path])
    return text.getvalue()


def write_outcome(outcome: SweepOutcome) -> list[Path]:
    """Keep it as ``sweep.json`` and ``trials.csv`` in the study's folder, and the best setting as ``best.yaml``, a run's configuration."""
    made = [
        write_atomic(outcome.folder / RESULT, dump_json(outcome.record()) + "\n"),
        write_atomic(outcome.folder / "trials.csv", table(outcome)),
    ]
    if outcome.best_config is not None:
        best = replace(outcome.best_config, name=f"{outcome.name}_best")
        made.append(write_atomic(outcome.folder / "best.yaml", to_yaml(best)))
    return made
