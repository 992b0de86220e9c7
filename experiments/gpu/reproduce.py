"""What runs of the true sizes cost on a GPU: steps and tokens per second, time of each phase, memory beside its estimate.

    python experiments/gpu/reproduce.py            # every part; writes results/<part>.json, each run as soon as it is done
    python experiments/gpu/reproduce.py PART...    # gemma-2-2b, world, llama-3.1-8b

What stands in results/ is not made again. TINY=1 takes tiny models and the CPU, to try the script out; LIMIT_S (default 1200) is the time
after whose end no run is begun, SPACE the folder for models (15 GB of Gemma and Llama; default /dev/shm where it has room).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TINY = os.environ.get("TINY") == "1"
RESULTS = Path(os.environ.get("RESULTS") or HERE / "results")
METHODS = {"gemma-2-2b": ("grad_diff", "sae_guided", "sae_erase"), "llama-3.1-8b": ("grad_diff", "sae_guided")}
STEPS, WARM = 12, 4
"""Optimiser steps of a run, and those of them that are not counted in its speed."""
GIB = 2**30
GPU_GB = 85.0
SMALL = [
    "data.split=forget01", "data.eval_rows=16", "data.unknown_names=12", "data.heldout_names=6",
    "evaluation.max_new_tokens=24", "evaluation.every=0", f"optim.steps={STEPS}", "optim.warmup_steps=2",
    "sae.check_hook=false", "tracking.enabled=false", "trainer.progress_bar=false", "trainer.devices=1",
    f"trainer.accelerator={'cpu' if TINY else 'gpu'}",
]  # fmt: skip
"""Beside the presets' settings: few steps, few rows to measure, and no check of an SAE that is random."""
WORLD_STEPS = 4 if TINY else 40


def keep(part: str, name: str, found: Any) -> None:
    """Add one result to those of a part."""
    path = RESULTS / f"{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = kept_of(part) | {name: found}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"{part} {name}: {json.dumps(found)}", flush=True)


def kept_of(part: str) -> dict[str, Any]:
    """Results of a part so far."""
    path = RESULTS / f"{part}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def synchronise() -> None:
    """Wait for the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def configuration(preset: str, method: str, space: Path) -> Any:
    """The preset's run on TOFU's format with another method."""
    import yaml

    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas

    base = yaml.safe_load((ROOT / "configs" / "models" / f"{preset}.yaml").read_text(encoding="utf-8"))
    if method != base["method"]["name"]:
        base["method"] = {"name": method}
    words = [f"data.root={space / 'tofu'}", f"cache={space / 'cache'}", f"out={space / 'runs' / preset}", f"name={method}", *SMALL]
    return load_config([base, ROOT / "configs" / "runs" / "tofu.yaml"], words, plugin_schemas())


def estimates(preset: str, space: Path) -> None:
    """What ``unlearn doctor`` says of each run before anything is loaded; needs no GPU."""
    from unlearn.cli.forecast import forecast
    from unlearn.cli.pieces import Pieces

    for method in METHODS[preset]:
        if method not in kept_of(f"{preset}-estimates"):
            try:
                findings = forecast(Pieces(configuration(preset, method, space)), gpu_memory=GPU_GB)
                facts = next(finding.facts for finding in findings if finding.what == "memory")
                keep(f"{preset}-estimates", method, dict(facts))
            except Exception as error:  # the other methods are estimated whatever comes of this one
                keep(f"{preset}-estimates", f"{method} failed", f"{type(error).__name__}: {error}"[:2000])


class Phases:
    """Seconds of each phase of a run: those that the assembly announces, and the rest by what happens."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        """In the place of ``unlearn.assembly.stage``."""
        start = time.perf_counter()
        try:
            yield lambda part: None
        finally:
            synchronise()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def clock(steps: int, found: dict[str, Any]) -> Any:
    """A callback that writes the speed of the steps after the first ``WARM`` and the memory of all to ``found``."""
    import torch
    from lightning.pytorch import Callback

    class Clock(Callback):
        def __init__(self) -> None:
            self.start, self.tokens, self.peak, self.ended = 0.0, [], 0, 0.0

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.warm = WARM * trainer.accumulate_grad_batches

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == self.warm:
                synchronise()
                self.start = time.perf_counter()
            if batch_idx >= self.warm:
                self.tokens += [part.attention_mask_BT.sum() for part in batch.values()]

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if torch.cuda.is_available():
                self.peak = max(self.peak, torch.cuda.max_memory_allocated())

        def on_train_end(self, trainer: Any, module: Any) -> None:
            synchronise()
            seconds = time.perf_counter() - self.start
            found["step_seconds"] = seconds / (steps - WARM)
            found["tokens_per_second"] = int(sum(int(n) for n in self.tokens)) / seconds
            found["peak_bytes"] = self.peak
            if torch.cuda.is_available():
                free, total = torch.cuda.mem_get_info()
                found.update(reserved_bytes=torch.cuda.max_memory_reserved(), used_on_card_bytes=total - free)
            self.ended = time.perf_counter()

    return Clock()


def timed(config: Any, steps: int) -> dict[str, Any]:
    """A whole run: seconds by phase, speed and memory."""
    import torch

    from unlearn.run import execute

    phases = Phases()
    found: dict[str, Any] = {}
    timer = clock(steps, found)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with mock.patch("unlearn.assembly.stage", phases.stage):
        path = execute(config, force=True, watch=lambda assembly: [timer])
    results = json.loads((path / "results.json").read_text(encoding="utf-8"))
    cost = {key: results[key] for key in results if key.startswith("cost/")}
    last = time.perf_counter() - timer.ended
    return {**found, "seconds": time.perf_counter() - start, "measurement_seconds": last, "phases": phases.seconds, "cost": cost}


def model(preset: str, space: Path) -> None:
    """Every method of ``METHODS`` on one model."""
    import torch

    keep(preset, "machine", {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", "torch": torch.__version__})
    for method in METHODS[preset]:
        if method not in kept_of(preset) and time.time() < float(os.environ["UNTIL"]):
            try:
                keep(preset, method, timed(configuration(preset, method, space), STEPS))
            except Exception as error:  # the other methods are measured whatever comes of this one
                keep(preset, f"{method} failed", f"{type(error).__name__}: {error}"[:2000])


def make(preset: str, space: Path) -> None:
    """The model and the SAE of a preset, with random weights."""
    import yaml

    from experiments.gpu.random_hub import write_model, write_sae

    said = yaml.safe_load((ROOT / "configs" / "models" / f"{preset}.yaml").read_text(encoding="utf-8"))
    start = time.perf_counter()
    config = write_model(space / "hub", said["model"]["path"], "cpu" if TINY else "cuda", TINY)
    latents = 16384 if preset.startswith("gemma") else 64 if TINY else 8 * 4096
    write_sae(space / "hub", said["sae"]["release"], said["sae"]["sae_id"], config.hidden_size, latents)
    keep(f"{preset}-made", "seconds", time.perf_counter() - start)


def world(space: Path) -> None:
    """The embedded world on the CPU with all cores, with one, and on the GPU."""
    import torch

    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas

    places = {"cpu": "cpu", "cpu, 1 thread": "cpu"} | ({"gpu": "gpu"} if torch.cuda.is_available() else {})
    for place, accelerator in places.items():
        for method in ("grad_diff", "sae_guided"):
            if f"{method} {place}" in kept_of("world") or time.time() > float(os.environ["UNTIL"]):
                continue
            base = {"name": f"{method}-{place[:5]}", "data": {"source": "world"}, "method": {"name": method}}
            words = [
                f"trainer.accelerator={accelerator}", f"trainer.threads={1 if '1' in place else os.cpu_count()}", "tracking.enabled=false",
                f"optim.steps={WORLD_STEPS + WARM}", f"out={space / 'runs' / 'world'}", "evaluation.every=0", "trainer.progress_bar=false",
            ]  # fmt: skip
            keep("world", f"{method} {place}", timed(load_config(base, words, plugin_schemas()), WORLD_STEPS + WARM))


def work(part: str, space: Path) -> None:
    """One part, in this process."""
    from unlearn.launch import quiet

    with quiet():
        kind, _, preset = part.rpartition(" ")
        if part == "world":
            world(space)
        else:
            {"estimates": estimates, "make": make, "": model}[kind](preset, space)


def begin(part: str, space: Path, **more: str) -> subprocess.Popen[bytes]:
    """One part in a process of its own, which sees the random hub and nothing else."""
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    hub = {"HF_HUB_CACHE": str(space / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": places, **more}
    return subprocess.Popen([sys.executable, str(Path(__file__)), "--work", part, str(space)], env={**os.environ, **hub})


def main(parts: Sequence[str]) -> None:
    """Make every part that is asked for, and fill the page after each."""
    from experiments.gpu.table import fill
    from tests.data.sources.fake_tofu import write_tofu

    until = time.time() + float(os.environ.get("LIMIT_S", 1200))
    os.environ["UNTIL"] = str(until)
    room = Path(os.environ.get("SPACE") or ("/dev/shm" if shutil.disk_usage("/dev/shm").free > 30 * GIB else tempfile.gettempdir()))
    room.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=room) as folder:
        space = Path(folder)
        write_tofu(space / "tofu")
        for part in parts or ("gemma-2-2b", "world", "llama-3.1-8b"):
            running = []
            if part in METHODS:
                if begin(f"make {part}", space).wait():
                    continue
                running = [begin(f"estimates {part}", space, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")]
            for process in [begin(part, space), *running]:
                process.wait()
            shutil.rmtree(space / "hub", ignore_errors=True)
            fill(HERE / "README.md", {file.stem: kept_of(file.stem) for file in RESULTS.glob("*.json")})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
