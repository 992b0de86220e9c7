"""Studies in small: runs that only compute a formula, so that what is around them can be tested with many workers."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from math import log10
from pathlib import Path
from typing import Any

import unlearn.callbacks.guard  # noqa: F401  (loads torch, before the collection below)
from tests.forks import forked
from unlearn.config.fingerprint import fingerprint, to_yaml
from unlearn.config.sweep import SweepSpec, load_sweep
from unlearn.sweep import engine, run_sweep, trial
from unlearn.tracking.rundir import RunDirectory, is_run, run_path

gc.freeze()
"""Studies collect garbage after every trial; what is there already is left out of it."""

SEARCH = {
    "method.name": {"choices": ["npo", "grad_diff"]},
    "optim.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "method.beta": {"low": 0.01, "high": 1.0, "when": {"method.name": "npo"}},
}


def sweep(folder: Path, *overrides: str, **keys: Any) -> SweepSpec:
    """A sweep whose runs are kept in ``folder``."""
    given = {
        "sweep": "study",
        "base": {"out": str(folder), "data": {"source": "jsonl", "path": "rows.jsonl"}, "tracking": {"enabled": False}},
        "search": SEARCH,
        "objectives": {"forget/accuracy": "minimize"},
        "sampler": {"name": "random"},
        "trials": 6,
        "heartbeat": 1,
        "patience": 60,
        **keys,
    }
    return load_sweep({key: value for key, value in given.items() if value is not None}, overrides)


def results_of(config: Any) -> dict[str, float]:
    """What the formula gives for a setting."""
    near = abs(log10(config.optim.lr) + 3.5) + (0.1 if config.method.name == "grad_diff" else getattr(config.method, "beta", 0.0))
    return {"forget/accuracy": near, "retain/accuracy": 1.0 / (1.0 + near), "generic/perplexity": 3.0 + config.optim.lr}


class Formula:
    """Stands in for ``execute``: every call is noted in ``calls`` and makes a run directory.

    ``before`` is called with the number of a trial, before its results are written.
    """

    def __init__(self, folder: Path, before: Callable[[int], None] = lambda number: None) -> None:
        self.calls, self.before = folder / "calls", before

    def __call__(self, config: Any, **how: Any) -> Path:
        number = int(config.name.rsplit("_", 1)[1])
        with self.calls.open("a") as file:
            file.write(json.dumps({"trial": number, "pid": os.getpid(), "fingerprint": fingerprint(config)}) + "\n")
        path = run_path(config.out, config.name)
        run = RunDirectory.create(config.out, config.name, exist="replace" if is_run(path) else "error")
        run.write_config(to_yaml(config))
        self.before(number)
        run.write_results(results_of(config))
        run.set_status("finished")
        return run.path


def calls(folder: Path) -> list[dict[str, Any]]:
    """Every run that was begun."""
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def worker(spec: SweepSpec, folder: Path, before: Callable[[int], None], log: Path, environment: Mapping[str, str] | None = None) -> int:
    """A worker in a process of its own; its id."""

    def work() -> None:
        trial.execute = Formula(folder, before)  # type: ignore[assignment]
        engine.draw = lambda study, outcome: []
        run_sweep(spec)

    return forked(work, log, dict(environment or {}))


def once(folder: Path, number: int, action: Callable[[], None]) -> Callable[[int], None]:
    """``action`` in the first process that begins trial ``number``, and only there."""

    def before(begun: int) -> None:
        try:
            if begun == number:
                os.close(os.open(folder / f"once_{number}", os.O_CREAT | os.O_EXCL))
                action()
        except FileExistsError:
            pass

    return before


def die() -> None:
    """As ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def slowly(seconds: float, then: Callable[[int], None] = lambda number: None) -> Callable[[int], None]:
    """Trials that take their time."""

    def before(number: int) -> None:
        then(number)
        time.sleep(seconds)

    return before
