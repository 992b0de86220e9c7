"""One tiny run, started in every way that the README names: two nodes, a scheduler, and what was left behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.lines import BIN, ROOT
from tests.loaded import SERVER, VARIABLE
from unlearn.config.load import load_config
from unlearn.module import UnlearningModule
from unlearn.run import execute
from unlearn.tracking.reader import RunRecord, read_run
from unlearn.tracking.study import study_name

LIMIT_S = 900
SHORT = {"bootstrap": "0", "permutations": "1", "null_draws": "0", "max_new_tokens": "2", "every": "0", "samples": "2"}
"""Of the section ``evaluation``: as little as there can be."""
LAUNCHER_VARIABLES = (
    "LT_",
    "SLURM_",
    "TORCHELASTIC_",
    "RANK",
    "LOCAL_",
    "WORLD_SIZE",
    "MASTER_",
    "NODE_RANK",
    "GROUP_",
    "UNLEARN_PREPARED",
)


@dataclass
class Launch:
    """What came of one command (or one per node)."""

    codes: list[int]
    output: str
    seconds: float
    records: list[list[dict[str, Any]]] = field(default_factory=list)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This process's variables, without those of a launcher."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
    return clean | {"OMP_NUM_THREADS": "1", "RECORD": str(folder), "PYTHONPATH": str(ROOT), "PYTHON": sys.executable} | more


def job_id() -> int:
    """A SLURM job number whose port, which Lightning derives from it, is free."""
    for candidate in range(os.getpid() * 17 % 9000, 10000):
        with socket.socket() as one:
            try:
                one.bind(("", 15000 + candidate))
            except OSError:
                continue
            return 420000 + candidate
    raise OSError("no free port for a SLURM job")


def small_sharded(config: dict[str, Any], *more: str) -> list[str]:
    """Words after the command of experiments/sharded/README.md: its configuration, with the model, SAE and rows of ``config``, on CPUs."""
    words = {
        "model.path": config["model"]["path"],
        "sae.path": config["sae"]["path"],
        "data.path": config["data"]["path"],
        "trainer.accelerator": "cpu",
        "optim.steps": "3",
        "optim.warmup_steps": "1",
        "latents.top_k": "4",
        "out": config["out"],
        "cache": config["cache"],
        "tracking.uri": config["tracking"]["uri"],
        **{f"data.batch.{stream}": "4" for stream in ("forget", "retain", "known", "unknown")},
        **{f"evaluation.{key}": value for key, value in SHORT.items()},
    }
    return ["experiments/sharded/llama_8b.yaml", *(f"{key}={value}" for key, value in words.items()), *more]


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """``config`` without devices, which the launcher says, as run.yaml."""
    trainer = {k: v for k, v in config["trainer"].items() if k != "devices"}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**config, "trainer": trainer}))
    return path


def launch(folder: Path, commands: Sequence[Sequence[str | Path]], **more: str) -> Launch:
    """Start all commands at once in ``folder``, wait for them, and read what the processes wrote down.

    With a variable that ``tests.loaded`` gives, the launchers take over what another process has loaded, as ``launched`` does.
    """
    folder.mkdir(exist_ok=True)
    if VARIABLE in more:
        commands = [[sys.executable, SERVER, *words] if words[0] in (BIN / "fabric", BIN / "torchrun") else words for words in commands]
    started = time.monotonic()
    running = []
    for number, command in enumerate(commands):
        with (folder / f"output{number}").open("w") as said:
            running.append(subprocess.Popen([str(c) for c in command], env=environment(folder, **more), cwd=ROOT, stdout=said, stderr=said))
    try:
        codes = [process.wait(max(1.0, LIMIT_S - (time.monotonic() - started))) for process in running]
    finally:
        for process in running:
            process.terminate()
    output = "".join((folder / f"output{number}").read_text() for number in range(len(commands)))
    records = [[json.loads(line) for line in file.read_text().splitlines()] for file in sorted(folder.glob("rank*.jsonl"))]
    return Launch(codes, output, time.monotonic() - started, records)


@contextmanager
def two_nodes() -> Iterator[tuple[str, str, list[list[str]]]]:
    """(kind, address of the first node, what to put before each node's command).

    ``namespaces``: two network namespaces with an address each, joined by a pair of virtual interfaces; taken away at the end. Where this
    process may not make them, ``loopback``: two nodes on one address.
    """
    names = [f"ul{os.getpid()}{side}" for side in "ab"]
    try:
        kind = _make_namespaces(names)
        if kind == "loopback":
            yield kind, "127.0.0.1", [[], []]
        else:
            inside = [["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={name}", f"TP_SOCKET_IFNAME={name}"] for name in names]
            yield kind, "10.77.0.1", inside
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _make_namespaces(names: Sequence[str]) -> str:
    if not shutil.which("ip"):
        return "loopback"
    first, second = names
    steps = [["ip", "netns", "add", name] for name in names]
    steps.append(["ip", "link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second])
    for number, name in enumerate(names, 1):
        inside = ["ip", "-n", name]
        steps += [
            [*inside, "link", "set", "lo", "up"],
            [*inside, "addr", "add", f"10.77.0.{number}/24", "dev", name],
            [*inside, "link", "set", name, "up"],
        ]
    done = all(subprocess.run(step, capture_output=True, check=False).returncode == 0 for step in steps)
    return "namespaces" if done else "loopback"


def fake_slurm(folder: Path, script: Path, nodes: int = 1) -> dict[str, str]:
    """Commands and variables of a job with two tasks, on one node or two: an ``srun`` that starts them, a ``scontrol`` that writes down
    its words.

    ``srun`` starts ``script`` in the place of experiments/run.py.
    """
    node, local = ("0", "$task") if nodes == 1 else ("$task", "0")
    tools = folder / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    ours = str(script).replace("/", r"\/")
    srun = rf"""#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
pids=()
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID={local} SLURM_NODEID={node} SLURM_STEP_ID=0 "${{@/experiments\/run.py/{ours}}}" &
    pids+=($!)
done
worst=0
for pid in "${{pids[@]}}"; do wait "$pid"; code=$?; (( code > worst )) && worst=$code; done
exit "$worst"
"""
    (tools / "srun").write_text(srun)
    (tools / "scontrol").write_text(f'#!/usr/bin/env bash\necho "$@" >> {folder}/scontrol\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": str(2 // nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_NODELIST": "localhost",
        "SLURM_JOB_ID": str(job_id()),
        "SLURM_JOB_NAME": "unlearn",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }


def difference(a: RunRecord, b: RunRecord) -> float:
    """Largest relative difference of results (costs aside), losses and final weights."""
    keys = {key for key in a.results if not key.startswith("cost/")}
    if keys != {key for key in b.results if not key.startswith("cost/")}:
        return math.inf
    pairs = [(a.results[key], b.results[key]) for key in keys]
    losses = [[m["value"] for m in one.metrics if m["key"] == "train/loss"] for one in (a, b)]
    if len(losses[0]) != len(losses[1]):
        return math.inf
    found = [_apart(x, y) for x, y in [*pairs, *zip(*losses, strict=True)]]
    weights = [load_file(one.path / "weights.safetensors") for one in (a, b)]
    found += [float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]]
    return max(found)


def _apart(x: Any, y: Any) -> float:
    if not isinstance(x, int | float) or not isinstance(y, int | float):
        return 0.0 if x == y else math.inf
    if math.isnan(x) and math.isnan(y):
        return 0.0
    return abs(x - y) / max(1.0, abs(x))


def run_alone(path: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """Make the run in this process, and give the rows of its optimiser steps."""
    from tests.distributed.launched import recorded

    step = UnlearningModule.training_step
    before = os.environ.get("RECORD")
    UnlearningModule.training_step, os.environ["RECORD"] = recorded(step), str(folder)  # type: ignore[method-assign]
    try:
        execute(load_config(path, [*words, "trainer.devices=1"]))
    finally:
        UnlearningModule.training_step = step  # type: ignore[method-assign]
        os.environ.pop("RECORD") if before is None else os.environ.update(RECORD=before)
    return [json.loads(line) for line in (folder / "rank0.jsonl").read_text().splitlines()]


def astray(records: Sequence[Sequence[dict[str, Any]]], whole: Sequence[dict[str, Any]]) -> int:
    """Rows that the processes were served beyond their shares of one process's batches, or were not served. A row that stands twice in a
    batch, where one pass over the rows ends and the next begins, may be served twice."""
    served = [Counter((said["step"], s, row) for said in record for s, rows in said["rows"].items() for row in rows) for record in records]
    expected = Counter((said["step"], s, row) for said in whole for s, rows in said["rows"].items() for row in rows)
    total = sum(served, Counter[tuple[int, str, int]]())
    return sum(((total - expected) + (expected - total)).values())


def mlflow_runs(uri: str, name: str) -> list[Any]:
    """MLflow runs of that name; ``study/name`` for one of a study."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    study = study_name(name)
    own = name.removeprefix(f"{study}/")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], f"attributes.run_name = '{own}'")
    return [run for run in found if run.data.tags.get("study", "") == study]


def record_of(config: dict[str, Any], name: str) -> RunRecord:
    """The run called ``name``."""
    return read_run(Path(config["out"]) / name)
