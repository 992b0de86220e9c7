"""Tune one method: a sweep over its space on the validation rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.comparison.ledger import Ledger, plain_numbers
from unlearn.comparison.plan import Plan
from unlearn.errors import RunError
from unlearn.functional.objective import parts, tuning_score
from unlearn.tracking.files import read_json
from unlearn.tracking.rundir import ACTIVATIONS, RESULTS, WEIGHTS

LARGE = (WEIGHTS, ACTIVATIONS, "checkpoints/last.ckpt")
"""Files of a trial's run that nobody asks for once it is scored."""
MEASURED = ("forget/accuracy", "forget/accuracy_paraphrased", "retain/accuracy", "retain/accuracy_unseen", "generic/perplexity") + (
    "latent/c2st_auc",
    "collapse/flag",
    "cost/train_cpu_seconds",
)
"""Results that the file of a tuning keeps of each trial."""


def tune(plan: Plan, method: str) -> Mapping[str, Any]:
    """Make the trials of ``method`` that are missing, write ``tuning/METHOD.json``, and return the chosen setting, by dotted key.

    The best trial by ``tuning_score`` is chosen, of equal ones the first; the first of all is the configuration's own setting. Trials that
    fail are part of the budget, and are tried again when a comparison goes on.

    Raises:
        RunError: no trial could be made.
        UnlearnError: the sweep cannot go on.
    """
    ledger = Ledger(plan.ledger)
    if kept := ledger.tuning(method):
        chosen: Mapping[str, Any] = kept["best"]["params"]
        return chosen
    from unlearn.sweep import load_sweep, run_sweep

    started, spent = time.perf_counter(), [time.process_time()]
    seconds: dict[int, float] = {}

    def told(trial: Any) -> None:
        spent.append(time.process_time())
        seconds[trial.number] = spent[-1] - spent[-2]

    outcome = run_sweep(load_sweep(plan.sweep(method)), score=score, again=True, told=told)
    rows = [_row(trial, seconds.get(trial.number)) for trial in outcome.trials]
    if outcome.best is None:
        reasons = "; ".join(dict.fromkeys(trial.reason for trial in outcome.trials if trial.reason))
        raise RunError(f"{method} must have a trial that can be made; found {len(rows)} that failed: {reasons}")
    params: dict[str, Any] = plain_numbers(outcome.best.params)  # as the file has them, so that a run can be gone on with
    best = {"number": outcome.best.number, "score": outcome.best.values[0], "params": params}
    cost = {"cpu_seconds": sum(seconds.values()), "seconds": time.perf_counter() - started, "trials_made_here": len(seconds)}
    record = {"method": method, "trials": rows, "best": best, "space": plan.space(method), "cost": cost}
    ledger.write(ledger.tuning_path(method), record)
    for trial in outcome.trials:
        _lighten(trial.path)
    return params


def score(results: Mapping[str, Any]) -> Sequence[float]:
    """What a trial is worth."""
    return [tuning_score(numbers(results))]


def numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """The results that are numbers; ``inf`` and ``nan`` are texts in a file."""
    named = {key: float(value) if value in ("inf", "-inf", "nan") else value for key, value in results.items()}
    return {key: float(value) for key, value in named.items() if isinstance(value, int | float)}


def _row(trial: Any, cpu_seconds: float | None) -> dict[str, Any]:
    """What the file keeps of a trial."""
    row = {"number": trial.number, "state": trial.state, "params": dict(trial.params), "score": trial.values[0] if trial.values else None}
    found = {} if trial.path is None else numbers(read_json(trial.path / RESULTS))
    if trial.reason:
        row["reason"] = trial.reason
    if cpu_seconds is not None:
        row["cpu_seconds"] = cpu_seconds
    kept = {key: found[key] for key in MEASURED if key in found}
    return {**row, **({"parts": parts(found), "results": kept} if kept else {})}


def _lighten(path: Path | None) -> None:
    for name in LARGE if path is not None else ():
        (Path(path or "") / name).unlink(missing_ok=True)
