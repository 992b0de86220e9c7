"""Whole runs, as a user makes them, that are killed or told to stop, and resumed.

``python -m tests.wholes FOLDER`` does what ``tests/test_resume.py`` and ``experiments/reliability/resume.py`` judge, and prints what was
found as one line of JSON.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import yaml

import unlearn.assembly
import unlearn.callbacks.evaluation
import unlearn.report.figures
from tests.forks import ended, forked
from tests.mini import make_mini
from tests.toys import toy
from unlearn.cli import main as command
from unlearn.methods.sae_guided import SAEGuided
from unlearn.tracking.files import read_json, read_lines
from unlearn.tracking.tensors import checksum, load_tensors

STEPS, EVERY = 6, 2
QUICK = {"bootstrap": 0, "permutations": 1, "null_draws": 0, "max_new_tokens": 2, "every": 2, "samples": 2}

Fault = Callable[[], None]


def send(number: int) -> None:
    """To this process."""
    os.kill(os.getpid(), number)


def at_step(step: int, number: int) -> Fault:
    """A signal in the middle of step ``step``."""

    def inject() -> None:
        before = SAEGuided.adjust_gradients
        count = [0]

        def adjust(self: Any, lm: Any) -> None:
            if count[0] == step:
                send(number)
            count[0] += 1
            before(self, lm)

        SAEGuided.adjust_gradients = adjust  # type: ignore[method-assign]

    return inject


def in_measurement(number: int) -> Fault:
    """A signal while the final model is measured."""

    def inject() -> None:
        unlearn.callbacks.evaluation.Evaluation.measure = lambda self, lm: send(number)  # type: ignore[method-assign,assignment]

    return inject


def in_assembly(number: int) -> Fault:
    """A signal before there is anything to save."""

    def inject() -> None:
        unlearn.assembly.select_weights = lambda *arguments: send(number)  # type: ignore[assignment]

    return inject


def nothing() -> None:
    """No fault."""


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with path.open("rb+") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def damage_last(run: Path) -> None:
    flip(run / "checkpoints" / "last.ckpt")


def damage_both(run: Path) -> None:
    damage_last(run)
    flip(run / "checkpoints" / "last.previous.ckpt")


def forget_mlflow(run: Path) -> None:
    """Take the id of the MLflow run out of the manifest; the checkpoint has it too."""
    manifest = read_json(run / "manifest.json")
    del manifest["mlflow_run_id"]
    (run / "manifest.json").write_text(json.dumps(manifest))


TRIALS: dict[str, tuple[Fault, Callable[[Path], None]]] = {
    "killed before the first checkpoint": (at_step(1, signal.SIGKILL), lambda run: None),
    "killed at step 5, last checkpoint damaged": (at_step(5, signal.SIGKILL), damage_last),
    "killed at step 5, both checkpoints damaged": (at_step(5, signal.SIGKILL), damage_both),
    "killed in the final measurement, MLflow id lost from the manifest": (in_measurement(signal.SIGKILL), forget_mlflow),
    "SIGTERM at step 3": (at_step(3, signal.SIGTERM), lambda run: None),
    "SIGUSR1 in the final measurement": (in_measurement(signal.SIGUSR1), lambda run: None),
    "SIGTERM while the run is put together": (in_assembly(signal.SIGTERM), lambda run: None),
    "Ctrl-C at step 3": (at_step(3, signal.SIGINT), lambda run: None),
}


class Lab:
    """Runs in children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mini = make_mini(folder)
        self.config = {
            **mini,
            "optim": {"steps": STEPS, "lr": 1e-3},
            "evaluation": QUICK,
            "trainer": {**mini["trainer"], "checkpoint_every": EVERY},  # type: ignore[dict-item]
        }

    def child(self, words: list[str], log: str, fault: Fault = nothing) -> tuple[int, str]:
        """Exit status and output of ``unlearn WORDS`` with a fault."""

        def work() -> None:
            torch.set_num_threads(1)
            unlearn.report.figures.draw_run = lambda path: []  # a second for each run, and nothing here looks at it
            fault()
            command(words)

        path = self.folder / f"{log}.txt"
        code = ended(forked(work, path))
        return code, path.read_text()

    def start(self, name: str, fault: Fault = nothing, **sections: Any) -> tuple[Path, int, str]:
        """A new run: its folder, exit status and output."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**self.config, "name": name, **sections}))
        code, said = self.child(["run", str(path)], f"{name}_log", fault)
        return self.folder / "runs" / name, code, said

    def state(self, run: Path) -> dict[str, Any]:
        """What a finished run left: weights, rows of metrics.jsonl and of MLflow (cost apart), results."""
        rows = Counter((row["step"], row["key"]) for row in read_lines(run / "metrics.jsonl"))
        results = {k: v for k, v in read_json(run / "results.json").items() if not k.startswith("cost/")}
        return {
            "state": read_json(run / "status").get("state"),
            "weights": checksum(load_tensors(run / "weights.safetensors")),
            "rows": sorted(rows.elements()),
            "mlflow": self.stored(run),
            "results": results,
        }

    def stored(self, run: Path) -> list[tuple[int, str]]:
        """(step, key) of every row that MLflow has of this run, under whatever MLflow run."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            rows = store.execute(
                "select step, key from metrics join runs using (run_uuid) where runs.name = ? and key not like 'cost/%'", (run.name,)
            ).fetchall()
        return sorted((int(step), str(key)) for step, key in rows)

    def runs(self, run: Path) -> list[str]:
        """States of the MLflow runs with this name."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            return [str(row[0]) for row in store.execute("select status from runs where name = ?", (run.name,))]


def main(folder: Path) -> dict[str, Any]:
    """Every trial, held against a run that was left alone."""
    torch.set_num_threads(1)
    toy(folder / "toy").method("sae_guided")  # imports, once for all children
    gc.freeze()
    lab = Lab(folder)
    calm, code, said = lab.start("calm")
    if code:
        raise RuntimeError(said)
    whole, found = lab.state(calm), []
    for number, (name, (fault, harm)) in enumerate(TRIALS.items()):
        run, code, said = lab.start(f"trial{number}", fault)
        status = read_json(run / "status")
        harm(run)
        again, answer = lab.child(["run", "--resume", str(run)], f"{run.name}_resumed")
        now = lab.state(run) if again == 0 else {}
        found.append(
            {
                "fault": name,
                "exit": code,
                "said": said[-400:],
                "status": status,
                "resumed": again,
                "answer": answer[-1500:],
                "equal": {key: now.get(key) == value for key, value in whole.items()},
                "mlflow_runs": lab.runs(run),
                "rows": len(now.get("rows", [])),
            }
        )
    return {"trials": found, "rows": len(whole["rows"]), "mlflow_rows": len(whole["mlflow"])}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
