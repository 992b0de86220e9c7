"""What tracking costs in training: the same steps without it, with a SQLite store, and with an MLflow server.

    python experiments/reliability/tracking_overhead.py [--steps 1000] [--rounds 10] [--batch 8] [--values 12]

The embedded world is trained in one process, with small batches (so that a step is short) and a dozen values logged in every step. The
steps are cut into rounds; in each round the three ways take turns, and the ratios are taken round by round, so that a busy machine slows
all of them. Every round starts and ends an MLflow run, with everything flushed inside of the measured time. Seconds are wall-clock and
CPU seconds of this process with all of its threads. Figures: experiments/reliability/results/tracking_overhead.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WAYS = ("off", "sqlite", "server")
LIMIT = 1.05
"""Largest allowed ratio."""


def local_stack() -> Any:
    """The module docker/local_stack.py."""
    spec = importlib.util.spec_from_file_location("local_stack", HERE.parents[1] / "docker" / "local_stack.py")
    if spec is None or spec.loader is None:
        sys.exit("docker/local_stack.py must be there; found none.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def assembled(folder: Path, steps: int, batch: int) -> Any:
    """The embedded world with a method on it, ready to train."""
    from unlearn.assembly import assemble
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas
    from unlearn.tracking.rundir import RunDirectory

    base = {"name": "overhead", "out": str(folder), "data": {"source": "world"}, "method": {"name": "sae_guided"}}
    small = [f"data.batch.{stream}={batch}" for stream in ("forget", "retain", "known", "unknown")]
    words = [f"optim.steps={steps}", "trainer.threads=1", "trainer.accelerator=cpu", "trainer.progress_bar=false", "tracking.enabled=false"]
    return assemble(load_config(base, [*small, *words], plugin_schemas()), RunDirectory.create(folder, "overhead"))


def fit(assembly: Any, way: str, uri: str | None, folder: Path, values: int) -> dict[str, float]:
    """Train and flush once; seconds."""
    from lightning.pytorch import Callback

    from unlearn.config.fingerprint import flatten
    from unlearn.config.schema import TrackingConfig
    from unlearn.launch import make_trainer
    from unlearn.tracking.logger import RunDirLogger
    from unlearn.tracking.mlflow import make_mlflow_logger
    from unlearn.tracking.rundir import RunDirectory

    class More(Callback):
        """Logs further values in every step."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Log as many as make ``values`` with the loss terms."""
            pl_module.log_dict({f"more/{i}": float(batch_idx + i) for i in range(values - 4)}, batch_size=1)

    run = RunDirectory.create(folder, f"{way}{time.monotonic_ns()}")
    config = assembly.config
    started = time.perf_counter()
    tracking = TrackingConfig(enabled=uri is not None, uri=uri)
    tracker = make_mlflow_logger(tracking, run.path.name, flatten(config))
    start_seconds = time.perf_counter() - started
    loggers = [RunDirLogger(run), *([tracker] if tracker else [])]
    trainer = make_trainer(config.trainer, config.optim, [More()], loggers, assembly.settings)
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit(assembly.module, datamodule=assembly.datamodule)
    if tracker is not None:
        tracker.finalize("finished")
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "start": start_seconds}
    if tracker is not None:
        check(tracker, run)
    return taken


def check(tracker: Any, run: Any) -> None:
    """Everything in the run's folder is in the store, or the measurement is worth nothing."""
    rows = [json.loads(line) for line in run.metrics_path.read_text(encoding="utf-8").splitlines()]
    stored = sum(len(tracker.experiment.get_metric_history(tracker.run_id, key)) for key in {row["key"] for row in rows})
    if stored != len(rows):
        sys.exit(f"the store must hold {len(rows)} values; found {stored}.")


def measure(steps: int, rounds: int, batch: int, values: int) -> Iterator[dict[str, Any]]:
    """Let the three ways take turns; figures of all rounds until then, after each."""
    import logging
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    stack = local_stack()
    sqlite = stack.postgres_programs() is None
    with tempfile.TemporaryDirectory() as place, stack.local_stack(sqlite=sqlite) as server:
        folder = Path(place)
        assembly = assembled(folder, steps // rounds, batch)
        uris = {"off": None, "sqlite": f"sqlite:///{folder}/mlflow.db", "server": server.uri}
        for way in WAYS:  # tables are made, code is warm
            fit(assembly, way, uris[way], folder, values)
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for turn in range(rounds):
            for way in (*WAYS[turn % 3 :], *WAYS[: turn % 3]):
                taken[way].append(fit(assembly, way, uris[way], folder, values))
            yield {
                "injected": f"{values} values in each step, logged to SQLite, and to an MLflow server on {server.database}",
                "times": turn + 1,
                "expected": f"at most {LIMIT:.2f} times the seconds without tracking",
                "lost": 0,
                "steps": (turn + 1) * (steps // rounds),
                "values_per_step": values,
                "batch": batch,
                **figures(taken, steps // rounds),
            }


def figures(taken: dict[str, list[dict[str, float]]], steps: int) -> dict[str, Any]:
    """Medians over rounds of ``steps`` steps, and ratios to the untracked steps of the same round."""
    per_step = {way: {kind: statistics.median(t[kind] for t in taken[way]) / steps for kind in ("wall", "cpu")} for way in WAYS}
    ratios = {
        way: {kind: [t[kind] / off[kind] for t, off in zip(taken[way], taken["off"], strict=True)] for kind in ("wall", "cpu")}
        for way in WAYS[1:]
    }
    middle = {way: {kind: statistics.median(ratios[way][kind]) for kind in ratios[way]} for way in ratios}
    return {
        "ms_per_step_wall": {way: round(1000 * per_step[way]["wall"], 2) for way in WAYS},
        "ms_per_step_cpu": {way: round(1000 * per_step[way]["cpu"], 2) for way in WAYS},
        "ratio_wall": {way: round(middle[way]["wall"], 4) for way in middle},
        "ratio_cpu": {way: round(middle[way]["cpu"], 4) for way in middle},
        "ratio_cpu_of_each_round": {way: [round(ratio, 3) for ratio in ratios[way]["cpu"]] for way in ratios},
        "start_seconds": {way: round(statistics.median(t["start"] for t in taken[way]), 2) for way in WAYS},
        "within_limit": all(ratio <= LIMIT for way in middle.values() for ratio in way.values()),
    }


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description="Seconds of training with and without tracking.")
    for name, default in (("steps", 1000), ("rounds", 10), ("batch", 8), ("values", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tracking_overhead.json")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for found in measure(given.steps, given.rounds, given.batch, given.values):
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{found['steps']} steps: CPU {found['ratio_cpu']}, wall-clock {found['ratio_wall']}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process of the stack stays behind
    main()
