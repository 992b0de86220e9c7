"""Runs of two processes that share the weights out between them, and the same runs of one process."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.forks import free_port
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas

RANKS = 2
QUICK = (
    "tracking.enabled=false", "evaluation.bootstrap=0", "evaluation.permutations=1", "evaluation.null_draws=0",
    "evaluation.max_new_tokens=2", "evaluation.every=2", "optim.steps=4",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run: the name of its folder, its method and what else is set."""

    name: str
    method: Mapping[str, Any]
    overrides: Sequence[str] = ()

    def config(self, mini: Mapping[str, Any], *more: str) -> Any:
        """The whole configuration."""
        return load_config({**mini, "method": dict(self.method), "name": self.name}, [*QUICK, *self.overrides, *more], plugin_schemas())

    def sharded(self, mini: Mapping[str, Any], *more: str) -> Any:
        """The whole configuration, for two processes, in a folder beside."""
        return self.config(mini, f"name={self.name}_sharded", "trainer.strategy=fsdp2", f"trainer.devices={RANKS}", *more)


CASES = (
    Case("gradient_ascent", {"name": "gradient_ascent"}),
    Case("grad_diff_full", {"name": "grad_diff"}, ("model.trainable.mode=full",)),
    Case("npo_lora", {"name": "npo"}, ("model.trainable.mode=lora", "model.lora.rank=2", "trainer.accumulate=2")),
    Case("rmu", {"name": "rmu"}),
    Case("sae_guided", {"name": "sae_guided", "objective": "prototype"}),
    Case("sae_guided_lora", {"name": "sae_guided", "objective": "distribution"}, ("model.trainable.mode=lora", "model.lora.rank=2")),
)
"""Through the logits and by early exit; blocks, everything and adapters."""


def _rank(rank: int, work: Sequence[Callable[[], object]], port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS), "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        for number, job in enumerate(work):
            (folder / f"{number}-{rank}.json").write_text(json.dumps(job(), default=str))
        if dist.is_initialized():
            dist.barrier()  # the first process holds the store that all talk through
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def on_two_ranks(work: Sequence[Callable[[], object]], folder: Path, seconds: float = 1800) -> list[list[Any]]:
    """Do each piece of work in two processes, one after another; for each piece, what it gave in either process (as JSON).

    Raises:
        RuntimeError: a process failed, or is not done in time; all are stopped.
    """
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("fork")  # the children take over what the parent has loaded
    port = free_port()
    ranks = [context.Process(target=_rank, args=(rank, work, port, folder)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(seconds)
    finally:
        for process in ranks:
            with contextlib.suppress(ValueError):
                process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
    if errors or any(process.exitcode for process in ranks):
        raise RuntimeError("\n".join([f"exit codes {[process.exitcode for process in ranks]}", *errors]))
    return [[json.loads((folder / f"{n}-{rank}.json").read_text()) for rank in range(RANKS)] for n in range(len(work))]


def losses(path: Path) -> list[float]:
    """``train/loss`` of every step of a run."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row["value"] for row in rows if row["key"] == "train/loss"]


def differs_by(a: Path, b: Path) -> dict[str, float]:
    """Largest differences between two runs: of the losses, relative to 1 + the loss, of the final weights, and of the results (cost apart),
    relative to 1 + the result. ``moved`` is how far training moved the weights of ``a`` (of the model's own: adapters start anew)."""
    from unlearn.tracking.reader import read_run
    from unlearn.tracking.rundir import RunDirectory

    x, y = (RunDirectory.open(path).read_weights() for path in (a, b))
    if x.keys() != y.keys() or not x or len(losses(a)) != len(losses(b)):
        raise ValueError(f"{a} and {b} trained different weights or numbers of steps")
    one, two = (read_run(path).results for path in (a, b))
    numbers = [k for k, v in one.items() if isinstance(v, float) and not k.startswith("cost/") and v == v]
    start = original(a)
    return {
        "loss": max(abs(p - q) / (1 + abs(p)) for p, q in zip(losses(a), losses(b), strict=True)),
        "weights": max(float((x[name] - y[name]).abs().max()) for name in x),
        "results": max(abs(one[k] - two[k]) / (1 + abs(one[k])) for k in numbers),
        "moved": max(float((x[name] - start.get(name, 0.0)).abs().max()) for name in x if "lora_A" not in name),
    }


def original(path: Path) -> dict[str, torch.Tensor]:
    """Weights that the run in ``path`` started from, named as in its ``weights.safetensors``."""
    from transformers import AutoModelForCausalLM

    config = load_config(path / "config.yaml", schemas=plugin_schemas())
    lm = AutoModelForCausalLM.from_pretrained(config.model.path)
    return {f"lm.{name}": p.detach() for name, p in lm.named_parameters()}
