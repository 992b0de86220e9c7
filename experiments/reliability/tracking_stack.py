"""Concurrent runs that log to PostgreSQL and an MLflow server at once; then everything is read back and compared with the run folders.

    python experiments/reliability/tracking_stack.py [--runs 8] [--steps 1000] [--sqlite]

Each run is a process of its own: a Lightning Trainer, the loggers of this package, a dozen values in every step, parameters, tags and
artifacts. The stack is docker/local_stack.py (--sqlite: without PostgreSQL). Figures: experiments/reliability/results/tracking_stack.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KEYS = 12
LOST = (
    "values_missing",
    "values_twice",
    "values_different",
    "params_missing",
    "tags_missing",
    "artifacts_missing",
    "rows_missing_on_disk",
)
"""What is counted against a stack; zero when nothing was lost."""


def value(run: int, key: int, step: int) -> float:
    """What run ``run`` logs as ``m/<key>`` at ``step``."""
    return math.sin(1.0 + run + 7.0 * key + 0.1 * step)


def params_of(run: int) -> dict[str, Any]:
    """Parameters of a run, more than one call of MLflow's takes."""
    return {"seed": run, **{f"p.{i}": i * run for i in range(120)}}


def tags_of(run: int) -> dict[str, str]:
    """Tags of a run."""
    return {f"tag{i}": f"{run}-{i}" for i in range(8)}


def one(run: int, uri: str, out: Path, steps: int) -> None:
    """One run, in this process."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    from unlearn.config.schema import TrackingConfig
    from unlearn.tracking.logger import RunDirLogger
    from unlearn.tracking.mlflow import make_mlflow_logger
    from unlearn.tracking.rundir import RunDirectory

    class Small(LightningModule):
        """Fits one number; logs a dozen."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            """Log and return the loss."""
            values = {f"m/{key}": torch.tensor(value(run, key, self.global_step), dtype=torch.float64) for key in range(KEYS)}
            self.log_dict(values, batch_size=1)
            return (self.weight - batch[0]).pow(2).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """Plain SGD."""
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.set_num_threads(1)
    folder = RunDirectory.create(out, f"run{run}")
    folder.write_config(f"name: run{run}\n")
    tracker = make_mlflow_logger(TrackingConfig(uri=uri, experiment="stack"), f"run{run}", params_of(run), tags_of(run))
    if tracker is None or tracker.run_id is None:
        sys.exit("the store was not reached")
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=-1, logger=[RunDirLogger(folder), tracker], log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Small(), DataLoader(TensorDataset(torch.ones(64, 1)), batch_size=1))
    folder.write_results({"final": float(run)})
    tracker.log_metrics({"final": float(run)}, steps)
    folder.set_status("finished")
    tracker.log_artifacts(folder.artifacts())
    tracker.finalize("finished")
    (out / f"run{run}.id").write_text(tracker.run_id, encoding="utf-8")


def compare(run: int, uri: str, out: Path, steps: int) -> Counter[str]:
    """Counts of what was expected of a run, and of what is missing, there twice, or different in the store."""
    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    client, found = MlflowClient(uri), Counter[str]()
    run_id = (out / f"run{run}.id").read_text(encoding="utf-8")
    stored = client.get_run(run_id)
    on_disk = [json.loads(line) for line in (out / f"run{run}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found["rows_on_disk"] = len(on_disk)
    for key in range(KEYS):
        expected = {(step, value(run, key, step)) for step in range(steps)}
        rows = [(row.step, row.value) for row in client.get_metric_history(run_id, f"m/{key}")]
        disk = {(row["step"], row["value"]) for row in on_disk if row["key"] == f"m/{key}"}
        found["values_expected"] += len(expected)
        found["values_missing"] += len(expected - set(rows))
        found["values_twice"] += len(rows) - len(set(rows))
        found["values_different"] += len(set(rows) - expected)
        found["rows_missing_on_disk"] += len(expected - disk)
    params = {name: str(v) for name, v in params_of(run).items()}
    found["params_expected"] = len(params)
    found["params_missing"] = sum(stored.data.params.get(name) != v for name, v in params.items())
    found["tags_expected"] = len(tags_of(run))
    found["tags_missing"] = sum(stored.data.tags.get(name) != v for name, v in tags_of(run).items())
    with tempfile.TemporaryDirectory() as folder:
        got = Path(download_artifacts(run_id=run_id, dst_path=folder, tracking_uri=uri))
        for name in ("config.yaml", "metrics.jsonl", "results.json", "status"):
            found["artifacts_expected"] += 1
            same = (got / name).is_file() and (got / name).read_bytes() == (out / f"run{run}" / name).read_bytes()
            found["artifacts_missing"] += not same
    found["finished"] = stored.info.status == "FINISHED"
    return found


def measure(runs: int, steps: int, sqlite: bool) -> dict[str, Any]:
    """Start the stack, make the runs at once, compare."""
    import mlflow

    spec = importlib.util.spec_from_file_location("local_stack", HERE.parents[1] / "docker" / "local_stack.py")
    if spec is None or spec.loader is None:
        sys.exit("docker/local_stack.py must be there; found none.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder, module.local_stack(sqlite=sqlite) as stack:
        out = Path(folder)
        started = time.monotonic()
        words = (stack.uri, folder, str(steps))
        made = [
            subprocess.Popen((sys.executable, __file__, "--one", str(run), *words), stderr=subprocess.PIPE, text=True)
            for run in range(runs)
        ]
        try:
            errors = [(process.communicate()[1], process.returncode) for process in made]
        finally:
            for process in made:
                process.kill()
        seconds = time.monotonic() - started
        failed = [text[-2000:] for text, code in errors if code]
        if failed:
            sys.exit(failed[0])
        warned = sum("MLflow store" in text for text, _ in errors)
        total = sum((compare(run, stack.uri, out, steps) for run in range(runs)), Counter[str]())
        lost = {name: total[name] for name in LOST}
        return {
            "injected": f"{runs} runs at once, {steps} steps of {KEYS} values each, into one store",
            "times": runs,
            "expected": "every value of every step, parameter, tag and artifact in the store as in the run folder; every run finished",
            "lost": sum(lost.values()) + runs - total["finished"],
            "database": stack.database,
            "mlflow": mlflow.__version__,
            "runs": runs,
            "steps": steps,
            "runs_finished": total["finished"],
            "runs_that_warned": warned,
            **{name: total[name] for name in ("values_expected", "params_expected", "tags_expected", "artifacts_expected")},
            **lost,
            "seconds": round(seconds, 1),
        }


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description="Concurrent runs into PostgreSQL and an MLflow server; nothing may be missing.")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sqlite", action="store_true", help="SQLite in the place of PostgreSQL")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tracking_stack.json")
    given = parser.parse_args()
    figures = measure(given.runs, given.steps, given.sqlite)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process of the stack stays behind
        main()
