"""What a step and an evaluation cost: CPU seconds with one thread, and peak memory, each method in its own process; what tracking adds.

    python experiments/bench/bench.py [--steps 5] [--methods NAME,...]     # methods, an evaluation, then tracking (1,000 steps)
    python experiments/bench/bench.py --only methods|tracking              # one of the two; the figures of the other are kept

Seconds on a shared machine wander; the ratios are taken within one run of this script. Results: experiments/bench/results/bench.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unlearn.registry import entries

HERE = Path(__file__).parent
REFERENCE = "grad_diff"
COLUMNS = {
    "CPU s/step": "step_cpu_seconds",
    f"x {REFERENCE}": "step_ratio",
    "training MiB": "training_memory_mb",
    "peak MiB": "peak_memory_mb",
}


def methods() -> list[str]:
    """Every method that takes steps, the reference first."""
    from unlearn.registry import find

    classes = {name: find("method", name).load() for name in entries("method")}
    found = [name for name, cls in classes.items() if cls.streams_of(cls.Config(name=name))]
    return sorted(found, key=lambda name: (name != REFERENCE, name))


def assembled(name: str, steps: int, folder: str) -> Any:
    """A run of ``name`` on the embedded world, ready to train."""
    from unlearn.assembly import assemble
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas
    from unlearn.tracking.rundir import RunDirectory

    base = {"name": name, "out": folder, "data": {"source": "world"}, "trainer": {"threads": 1, "progress_bar": False}}
    config = load_config(base, [f"method.name={name}", f"optim.steps={steps}", "tracking.enabled=false"], plugin_schemas())
    return assemble(config, RunDirectory.create(folder, name))


def measure(name: str, steps: int, evaluate: bool) -> dict[str, float]:
    """Cost of one method on the embedded world, and of an evaluation; for a fresh process."""
    from unlearn.callbacks.cost import PeakMemory
    from unlearn.functional.ranks import across_ranks

    with tempfile.TemporaryDirectory() as folder:
        assembly = assembled(name, steps, folder)
        module, memory = assembly.module, PeakMemory()
        memory.settle()
        memory.start()
        idle = memory.before
        optimizer = module.configure_optimizers()["optimizer"]
        seconds, peaks = [], []
        for step, (batch, _, _) in enumerate(assembly.datamodule.train_dataloader()):
            memory.start()
            start = time.process_time()
            module.method.before_step(module.lm, step, steps)
            optimizer.zero_grad()
            with across_ranks():
                module.method.loss(module.lm, batch).total.backward()
            module.method.adjust_gradients(module.lm)
            optimizer.step()
            seconds.append(time.process_time() - start)
            peaks.append(memory.stop())
        found = {
            "step_cpu_seconds": statistics.median(seconds),
            "training_memory_mb": max(peaks) - idle,
            "peak_memory_mb": max(peaks),
        }
        if evaluate:
            start = time.process_time()
            assembly.suite.measure(module.lm)
            found["evaluation_cpu_seconds"] = time.process_time() - start
        return found


def child(answer: Any, name: str, steps: int) -> None:
    """Send what ``measure`` finds, or why it does not."""
    import torch

    torch.set_num_threads(1)
    try:
        answer.send(measure(name, steps, evaluate=name == REFERENCE))
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")


def every(names: Sequence[str], steps: int, keep: Callable[[dict[str, dict[str, float]]], None]) -> None:
    """``measure`` of each method, in a process that is forked from this one, so that libraries are imported once; all until then are kept
    after each."""
    import torch

    import unlearn.assembly
    import unlearn.evaluation.suite  # noqa: F401

    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    found: dict[str, dict[str, float]] = {}
    for place, name in enumerate(names, 1):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(there, name, steps))
        process.start()
        there.close()
        try:
            said = here.recv()
        except EOFError:
            said = "the process ended without an answer"
        process.join()
        if isinstance(said, str):
            sys.exit(f"{name}: {said}")
        found[name] = said
        if REFERENCE in found:
            said["step_ratio"] = said["step_cpu_seconds"] / found[REFERENCE]["step_cpu_seconds"]
        keep(found)
        print(f"{place}/{len(names)} {name}", file=sys.stderr, flush=True)


def table(found: dict[str, dict[str, float]]) -> str:
    """One line for each method, and the cost of an evaluation."""
    lines = [f"{'method':18}" + "".join(f"{name:>14}" for name in COLUMNS)]
    digits = {"step_cpu_seconds": 3, "step_ratio": 2, "training_memory_mb": 1, "peak_memory_mb": 0}
    for name, row in sorted(found.items(), key=lambda item: item[1]["step_cpu_seconds"]):
        lines.append(f"{name:18}" + "".join(f"{row.get(key, float('nan')):14.{digits[key]}f}" for key in COLUMNS.values()))
    lines += [f"an evaluation: {row['evaluation_cpu_seconds']:.1f} CPU s" for row in found.values() if "evaluation_cpu_seconds" in row]
    return "\n".join(lines)


def tracking(steps: int) -> dict[str, Any]:
    """What tracking costs; the figures of a script of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tracking.json"
        script = HERE.parent / "reliability" / "tracking_overhead.py"
        command = [sys.executable, str(script), "--steps", str(steps), "--out", str(out)]
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"tracking: {done.stderr.strip()[-2000:]}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def tracked(found: dict[str, Any]) -> str:
    """A line for each store."""
    lines = [f"tracking, {found['steps']} steps of {found['values_per_step']} values; shares of the CPU seconds of training"]
    for way, row in found["ways"].items():
        shown = [f"{key} {row[key]:.4f}" for key in row if key.startswith(("share", "ratio"))]
        lines += [f"{way:10}" + ", ".join(shown)] if shown else []
    return "\n".join(lines)


def main() -> None:
    """Measure, write the figures, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps of each method (default 5)")
    parser.add_argument("--methods", default="", help="some methods, with commas (default: all)")
    parser.add_argument("--tracked-steps", type=int, default=1000, help="optimiser steps of the tracking part (default 1000)")
    parser.add_argument("--only", choices=("methods", "tracking"), help="one of the two parts")
    given = parser.parse_args()
    path = HERE / "results" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def keep(part: dict[str, Any]) -> None:
        kept.update(part)
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

    if given.only != "tracking":
        names = given.methods.split(",") if given.methods else methods()
        every(names, given.steps, lambda found: keep({"steps": given.steps, "methods": found}))
    if given.only != "methods":
        keep({"tracking": tracking(given.tracked_steps)})
    print(
        "\n\n".join(
            [*([table(kept["methods"])] if "methods" in kept else []), *([tracked(kept["tracking"])] if "tracking" in kept else [])]
        )
    )


if __name__ == "__main__":
    main()
