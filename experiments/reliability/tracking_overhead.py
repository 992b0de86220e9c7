"""What tracking costs in training: the same steps with no logger, with SQLite and with an MLflow server.

    python experiments/reliability/tracking_overhead.py [--steps 1000] [--rounds 10] [--batch 8] [--values 12]

The embedded world is trained in one process, with small batches (so that a step is short) and a dozen values logged in every step. The
steps are cut into rounds; in each the three ways take turns, and ratios are taken within a round, so that a busy machine slows all of them.
Every round ends its MLflow run, with everything flushed inside of the measured time, and the store is then read back.

Judged, and hardly sensitive to neighbours on the machine: what the training thread spends inside of the loggers' calls, and what all
threads spend on tracking (the same, and every CPU second of other threads), as shares of the training thread's CPU seconds outside of
them. Then, for what waiting there is, ratios to the same steps without a logger: of CPU seconds and of the clock. Figures:
results/tracking_overhead.json beside this.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WAYS = ("nothing", "sqlite", "server")
"""No logger at all; metrics.jsonl and an MLflow store."""
STORES = WAYS[1:]
KINDS = ("cpu", "thread", "wall")
"""Seconds of the process with all of its threads, of the thread that trains, and of the clock."""
SHARES: dict[str, Callable[[dict[str, float]], float]] = {
    "share in loggers": lambda t: t["inside_thread"] / (t["thread"] - t["inside_thread"]),
    "share, all threads": lambda t: (t["cpu"] - t["thread"] + t["inside_thread"]) / (t["thread"] - t["inside_thread"]),
}
"""What the training thread spends in loggers, and what all threads spend on tracking, of what training itself takes."""
SHOWN = (*SHARES, "ratio, thread", "ratio, cpu", "ratio, wall")
LIMIT = 0.05
"""Largest allowed share of the seconds without tracking."""


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


class Timed:
    """CPU seconds that the training thread spends inside of calls."""

    def __init__(self) -> None:
        self.cpu = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, with its seconds counted."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            cpu = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.cpu += time.thread_time() - cpu

        return timed


def more_values(values: int) -> Any:
    """A callback that logs as many further values in every step as make ``values`` with the loss terms."""
    from lightning.pytorch import Callback

    class More(Callback):
        """See above."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Log them."""
            terms = sum(key.startswith("train/") for key in pl_module.logged)
            pl_module.log_dict({f"more/{i}": float(batch_idx + i) for i in range(values - terms)}, batch_size=1)

    return More()


def fit(assembly: Any, way: str, uri: str | None, folder: Path, values: int) -> dict[str, float]:
    """Train and flush once; seconds."""
    from unlearn.config.fingerprint import flatten
    from unlearn.config.schema import TrackingConfig
    from unlearn.launch import make_trainer
    from unlearn.tracking.logger import RunDirLogger
    from unlearn.tracking.mlflow import make_mlflow_logger
    from unlearn.tracking.rundir import RunDirectory

    run = RunDirectory.create(folder, f"{way}{time.monotonic_ns()}")
    config = assembly.config
    started = time.perf_counter()
    tracker = make_mlflow_logger(TrackingConfig(enabled=uri is not None, uri=uri), run.path.name, flatten(config))
    start_seconds = time.perf_counter() - started
    loggers = [] if way == "nothing" else [RunDirLogger(run), *([tracker] if tracker else [])]
    inside = [Timed(), Timed()]
    for logger, timed in zip(loggers, inside, strict=False):
        logger.log_metrics = timed.around(logger.log_metrics)
    trainer = make_trainer(config.trainer, config.optim, [more_values(values)], loggers, assembly.settings)
    wall, cpu, thread = time.perf_counter(), time.process_time(), time.thread_time()
    trainer.fit(assembly.module, datamodule=assembly.datamodule)
    if tracker is not None:
        tracker.finalize("finished")
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "thread": time.thread_time() - thread}
    if tracker is not None:
        check(tracker, run, config.optim.steps, values)
    folder_s, store_s = (timed.cpu for timed in inside)
    return {**taken, "start": start_seconds, "inside_folder": folder_s, "inside_store": store_s, "inside_thread": folder_s + store_s}


def check(tracker: Any, run: Any, steps: int, values: int) -> None:
    """Everything that was logged is in the run's folder and in the store, or the measurement is worth nothing."""
    keys = {json.loads(line)["key"] for line in run.metrics_path.read_text(encoding="utf-8").splitlines()}
    rows = len(run.metrics_path.read_text(encoding="utf-8").splitlines())
    stored = sum(len(tracker.experiment.get_metric_history(tracker.run_id, key)) for key in keys)
    if not steps * values == rows == stored:
        sys.exit(f"folder and store must hold {steps * values} values; found {rows} and {stored}.")


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
        uris = {"sqlite": f"sqlite:///{folder}/mlflow.db", "server": server.uri}
        for way in WAYS:  # tables are made, code is warm
            fit(assembly, way, uris.get(way), folder, values)
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for turn in range(rounds):
            for way in (*WAYS[turn % 3 :], *WAYS[: turn % 3]):
                taken[way].append(fit(assembly, way, uris.get(way), folder, values))
            yield {
                "injected": f"{values} values in each step, logged to SQLite, and to an MLflow server on {server.database}",
                "times": turn + 1,
                "expected": f"at most {LIMIT:.0%} of the CPU seconds of training",
                "steps": (turn + 1) * (steps // rounds),
                "values_per_step": values,
                "batch": batch,
                **figures(taken, steps // rounds),
            }


def figures(taken: dict[str, list[dict[str, float]]], steps: int) -> dict[str, Any]:
    """Medians over rounds of ``steps`` steps, and ratios to the steps of the same round without a logger."""

    def middle(way: str, kind: str) -> float:
        return statistics.median(t[kind] for t in taken[way])

    def ratios(way: str, kind: str) -> list[float]:
        return [t[kind] / bare[kind] for t, bare in zip(taken[way], taken["nothing"], strict=True)]

    rows = {}
    for way in WAYS:
        row: dict[str, Any] = {f"ms a step, {kind}": round(1000 * middle(way, kind) / steps, 2) for kind in KINDS}
        if way != "nothing":
            row |= {f"ms a step in {what}": round(1000 * middle(way, f"inside_{what}") / steps, 3) for what in ("folder", "store")}
            row |= {name: round(statistics.median(share(t) for t in taken[way]), 4) for name, share in SHARES.items()}
            row |= {f"ratio, {kind}": round(statistics.median(ratios(way, kind)), 4) for kind in KINDS}
        rows[way] = row
    spread = {way: quartiles(ratios(way, "cpu")) for way in WAYS[1:]}
    over = [f"{way}: {key} {rows[way][key]}" for way in STORES for key in SHARES if rows[way][key] > LIMIT]
    return {
        "lost": ", ".join(over) or "nothing",
        "start_seconds": {way: round(middle(way, "start"), 2) for way in STORES},
        "quartiles of the CPU ratio over rounds": spread,
        "ways": rows,
    }


def quartiles(values: list[float]) -> list[float]:
    """First and third quartile."""
    if len(values) < 2:
        return [round(value, 3) for value in values] * 2
    first, _, third = statistics.quantiles(values, n=4)
    return [round(first, 3), round(third, 3)]


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
        shown = {way: {key: row[key] for key in SHOWN if key in row} for way, row in found["ways"].items() if way != "nothing"}
        print(f"{found['steps']} steps: {shown}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process of the stack stays behind
    main()
