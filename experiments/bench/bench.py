"""What a step and an evaluation cost: CPU seconds with one thread, and peak memory, each method in a process of its own.

    python experiments/bench/bench.py [STEPS]     # every method, then tracking
    python experiments/bench/bench.py tracking    # what tracking adds to 1,000 steps, with SQLite and with a server

Seconds on a shared machine wander; the ratios are taken within one run of this script. Results: experiments/bench/results/bench.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from unlearn.registry import entries

HERE = Path(__file__).parent
REFERENCE = "grad_diff"


def methods() -> list[str]:
    """Every method that takes steps."""
    from unlearn.registry import find

    classes = {name: find("method", name).load() for name in entries("method")}
    return [name for name, cls in classes.items() if cls.streams_of(cls.Config(name=name))]


def measure(name: str, steps: int) -> dict[str, float]:
    """Cost of one method on the embedded world; runs in a fresh process."""
    import torch
    from lightning.pytorch.utilities.combined_loader import CombinedLoader

    from unlearn.assembly import assemble
    from unlearn.callbacks.cost import PeakMemory
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas
    from unlearn.tracking.rundir import RunDirectory

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base = {"name": name, "out": folder, "data": {"source": "world"}, "trainer": {"threads": 1, "progress_bar": False}}
        config = load_config(base, [f"method.name={name}", f"optim.steps={steps}", "tracking.enabled=false"], plugin_schemas())
        assembly = assemble(config, RunDirectory.create(folder, name))
        module = assembly.module
        memory = PeakMemory()
        memory.settle()
        memory.start()
        idle = memory.before
        optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
        loader: CombinedLoader = assembly.datamodule.train_dataloader()
        seconds, peaks = [], []
        for step, (batch, _, _) in enumerate(loader):
            memory.start()
            start = time.process_time()
            module.method.before_step(module.lm, step, steps)
            optimizer.zero_grad()
            module.method.loss(module.lm, batch).total.backward()
            module.method.adjust_gradients(module.lm)
            optimizer.step()
            seconds.append(time.process_time() - start)
            peaks.append(memory.stop())
        start = time.process_time()
        assembly.suite.measure(module.lm)
        return {
            "step_cpu_seconds": statistics.median(seconds),
            "evaluation_cpu_seconds": time.process_time() - start,
            "training_memory_mb": max(peaks) - idle,
            "peak_memory_mb": max(peaks),
        }


def tracking() -> dict[str, object]:
    """Ratio of the seconds of training with tracking to those without; the figures of a script of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tracking.json"
        script = HERE.parent / "reliability" / "tracking_overhead.py"
        done = subprocess.run([sys.executable, str(script), "--out", str(out)], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"tracking: {done.stderr.strip()[-2000:]}")
        found: dict[str, object] = json.loads(out.read_text(encoding="utf-8"))
    print(f"tracking: {found['ratio_cpu']} times the CPU seconds, {found['ratio_wall']} times the wall-clock seconds without it")
    return found


def keep(part: dict[str, object]) -> None:
    """Merge ``part`` into the figures."""
    path = HERE / "results" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, **part}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure every method, print a table, write the figures."""
    if sys.argv[1:2] == ["tracking"]:
        return keep({"tracking": tracking()})
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    found = {}
    for name in methods():
        out = subprocess.run([sys.executable, __file__, "--one", name, str(steps)], capture_output=True, text=True, check=False)
        if out.returncode:
            sys.exit(f"{name}: {out.stderr.strip()[-2000:]}")
        found[name] = json.loads(out.stdout.splitlines()[-1])
    print(f"{'method':18} {'CPU s/step':>10} {'x ' + REFERENCE:>12} {'training MB':>14} {'peak MB':>8} {'evaluation CPU s':>17}")
    for name, row in found.items():
        row["step_ratio"] = row["step_cpu_seconds"] / found[REFERENCE]["step_cpu_seconds"]
        print(
            f"{name:18} {row['step_cpu_seconds']:10.4f} {row['step_ratio']:12.2f} {row['training_memory_mb']:14.1f} "
            f"{row['peak_memory_mb']:8.0f} {row['evaluation_cpu_seconds']:17.2f}"
        )
    keep({"steps": steps, "methods": found})
    return keep({"tracking": tracking()})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
