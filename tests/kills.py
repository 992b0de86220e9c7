"""Runs that are killed and resumed, each in a process of its own, forked from one that has imported everything.

``python -m tests.kills FOLDER`` does what ``tests/test_resume.py`` and ``experiments/reliability/resume.py`` judge; with ``ranks`` behind
it, what ``tests/test_faults.py`` and ``experiments/reliability/faults.py`` do. What was found is printed as one line of JSON.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from tests.forks import ended, forked, free_port
from tests.toys import Toy, toy
from unlearn.callbacks import ranks as guarded
from unlearn.callbacks.cost import Cost
from unlearn.callbacks.guard import Checkpoints, GracefulStop, NonFiniteGuard
from unlearn.callbacks.journal import Journal, rewind
from unlearn.callbacks.ranks import RankWatch
from unlearn.config.schema import OptimConfig, TrainerConfig
from unlearn.launch import make_trainer, trainer_settings
from unlearn.module import UnlearningModule
from unlearn.tracking import files
from unlearn.tracking.checkpoint import newest, read
from unlearn.tracking.files import read_lines
from unlearn.tracking.logger import RunDirLogger
from unlearn.tracking.rundir import RunDirectory
from unlearn.types import LossTerms

STEPS, EVERY = 6, 2
MOMENTS = ("step begins", "backward begins", "optimiser is about to step", "step ends", "checkpoint is about to be renamed")


@dataclass(frozen=True)
class Case:
    """A training run in small."""

    method: str
    accumulate: int = 1
    ranks: int = 1


CASES = (Case("sae_guided"), Case("pdu", 2), Case("undo"), Case("gradient_ascent", 2))


@dataclass(frozen=True)
class Kill:
    """When something happens to a process: in which micro-batch (from 0), at what moment, in which rank, and what: a signal, ``raise``
    (an error of its own) or ``nan`` (a loss that is not finite).
    """

    micro_batch: int
    moment: str
    rank: int = 0
    how: str = "SIGKILL"


class Death(pl.Callback):
    """Ends this process as the kernel would."""

    def __init__(self, kill: Kill) -> None:
        self.kill = kill
        self.count = -1
        self.done = False
        self.factor = 1.0

    def at(self, moment: str) -> None:
        if self.done or moment != self.kill.moment or self.count < self.kill.micro_batch:
            return
        self.done = True
        if self.kill.how == "raise":
            raise MemoryError("no memory left for this batch")
        if self.kill.how == "nan":
            self.factor = float("nan")
        else:
            os.kill(os.getpid(), getattr(signal, self.kill.how))

    def on_train_batch_start(self, *args: Any) -> None:
        self.count += 1
        self.at(MOMENTS[0])

    def on_before_backward(self, *args: Any) -> None:
        self.at(MOMENTS[1])

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.at(MOMENTS[2])

    def on_train_batch_end(self, *args: Any) -> None:
        self.at(MOMENTS[3])

    def listen(self) -> None:
        """Also look at what is renamed."""
        rename = files.os.replace

        def replace(source: Any, target: Any) -> None:
            if str(target).endswith("last.ckpt"):
                self.at(MOMENTS[4])
            rename(source, target)

        files.os.replace = replace  # type: ignore[assignment]


def chance(method: Any, death: Death) -> None:
    """Let every generator of this process have a say in the loss, and its fate."""
    calm = method.loss

    def loss(lm: Any, batch: Any) -> LossTerms:
        terms = calm(lm, batch)
        factor = 1 + 0.2 * float(torch.rand(())) + 0.2 * random.random() + 0.2 * float(np.random.rand() + np.random.randn())
        return LossTerms(terms.total * factor * death.factor, terms.terms)

    method.loss = loss


def train(made: Toy, case: Case, run: RunDirectory, rank: int = 0, kill: Kill | None = None) -> None:
    """One process of a training run, from its last checkpoint where it has one; leaves ``end<rank>.json``."""
    torch.set_num_threads(1)
    pl.seed_everything(17 + rank, verbose=False)
    lm, method = made.ready(case.method)
    death = Death(kill or Kill(-1, "never"))
    chance(method, death)
    made.datamodule.steps, made.datamodule.accumulate = STEPS, case.accumulate
    made.datamodule.active_streams = method.streams_of(method.config)
    optim = OptimConfig(steps=STEPS, lr=1e-3, schedule="cosine", warmup_steps=2)
    module = UnlearningModule(lm, method, optim)
    path, _ = newest(run.checkpoints)
    if rank == 0:
        rewind(run, None if path is None else read(path))
    cost, watch = Cost(), RankWatch(lambda reason: _stopped(run, rank, reason, "hung"))
    death.listen()
    callbacks = [
        cost, watch, NonFiniteGuard(run.checkpoints), Journal(run, lambda: "an id"), GracefulStop(run.checkpoints),
        death, Checkpoints(run.checkpoints, EVERY),
    ]  # fmt: skip
    strategy = "ddp" if case.ranks > 1 else None
    config = TrainerConfig(accelerator="cpu", devices=str(case.ranks), strategy=strategy, progress_bar=False, accumulate=case.accumulate)
    trainer = make_trainer(config, optim, callbacks, [RunDirLogger(run)], trainer_settings(config, {}))
    try:
        trainer.fit(module, datamodule=made.datamodule, ckpt_path=path, weights_only=True)
    except Exception as error:
        _stopped(run, rank, watch.reason, str(error))
        raise
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().contiguous().numpy().tobytes())
    dice = (torch.rand(3).tolist(), random.random(), np.random.rand(2).tolist())
    end = {"weights": digest.hexdigest(), "dice": dice, "micro_batches": len(cost.seconds), "from": path.name if path else ""}
    (run.path / f"end{rank}.json").write_text(json.dumps(end))


def _stopped(run: RunDirectory, rank: int, reason: str, error: str) -> None:
    (run.path / f"stopped{rank}.json").write_text(json.dumps({"reason": reason, "error": error}))


def launch(made: Toy, case: Case, run: RunDirectory, kill: Kill | None = None) -> list[int]:
    """All processes of a run; their exit statuses."""
    port, pids = str(free_port()), []
    for rank in range(case.ranks):
        mine = kill if kill is not None and kill.rank == rank else None
        many = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        work = lambda rank=rank, mine=mine: train(made, case, run, rank, mine)  # noqa: E731
        pids.append(forked(work, run.path / f"log{rank}.txt", many if case.ranks > 1 else None))
    codes = []
    for rank, pid in enumerate(pids):
        if kill is not None and kill.how == "SIGSTOP" and kill.rank == rank:
            os.kill(pid, signal.SIGKILL)  # those before it in the list have ended without it
        codes.append(ended(pid))
    return codes


def state(run: RunDirectory, case: Case) -> dict[str, Any]:
    """What a run ended with."""
    ends = [json.loads((run.path / f"end{rank}.json").read_text()) for rank in range(case.ranks)]
    rows = sorted((row["step"], row["key"], row["value"]) for row in read_lines(run.metrics_path))
    return {
        "weights": [e["weights"] for e in ends],
        "dice": [e["dice"] for e in ends],
        "rows": rows,
        "n": [e["micro_batches"] for e in ends],
    }


def trial(made: Toy, case: Case, folder: Path, name: str, kill: Kill, whole: dict[str, Any]) -> dict[str, Any]:
    """Kill a run, resume it, and hold it against the one that was left alone."""
    run = RunDirectory.create(folder, name)
    codes = launch(made, case, run, kill)
    lines = len(read_lines(run.metrics_path))
    again = launch(made, case, run)
    found: dict[str, Any] = {"case": asdict(case), "kill": asdict(kill), "killed": codes, "resumed": again, "rows_at_the_kill": lines}
    if any(again):
        return {**found, "log": "".join(p.read_text()[-1500:] for p in sorted(run.path.glob("log*.txt")))}
    now = state(run, case)
    first = json.loads((run.path / "end0.json").read_text())["from"]
    return {**found, "from": first, "equal": {key: now[key] == whole[key] for key in whole}, "rows": len(now["rows"])}


def points(n: int, seed: int) -> list[tuple[Case, Kill]]:
    """Random moments, every kind of them at least once."""
    dice, made = random.Random(seed), []
    for i in range(n):
        case = CASES[i % len(CASES)]
        made.append((case, Kill(dice.randrange(STEPS * case.accumulate), MOMENTS[(i * 3 + i // 5) % len(MOMENTS)])))
    return made


def main(folder: Path, n: int = 20, seed: int = 6) -> dict[str, Any]:
    """``n`` kills of one process and two of one of two."""
    torch.set_num_threads(1)
    made = toy(folder / "toy")
    for case in CASES:
        made.method(case.method)  # imports, once for all children
    gc.freeze()
    found: dict[str, Any] = {"trials": [], "ranks": []}
    wholes: dict[Case, dict[str, Any]] = {}
    pairs = [*points(n, seed), (Case("sae_guided", 1, 2), Kill(3, MOMENTS[1], 1)), (Case("gradient_ascent", 2, 2), Kill(9, MOMENTS[3], 0))]
    for i, (case, kill) in enumerate(pairs):
        if case not in wholes:
            run = RunDirectory.create(folder, f"whole_{case.method}_{case.ranks}")
            codes = launch(made, case, run)
            if any(codes):
                raise RuntimeError("".join(p.read_text()[-3000:] for p in sorted(run.path.glob("log*.txt"))))
            wholes[case] = state(run, case)
        result = trial(made, case, folder, f"killed{i}", kill, wholes[case])
        if case.ranks > 1:
            other = folder / f"killed{i}" / f"stopped{1 - kill.rank}.json"
            result["survivor"] = json.loads(other.read_text()) if other.exists() else None
        found["ranks" if case.ranks > 1 else "trials"].append(result)
    return found


RANK_FAULTS = (
    Kill(3, MOMENTS[1], 1, "SIGSTOP"),
    Kill(3, MOMENTS[0], 1, "raise"),
    Kill(3, MOMENTS[0], 1, "nan"),
    Kill(3, MOMENTS[1], 1, "SIGTERM"),
)


def ranks(folder: Path) -> list[dict[str, Any]]:
    """What happens to one process of two, and how the other ends; the beat of the watch is ten times as fast as it is by default."""
    torch.set_num_threads(1)
    guarded.BEAT_S, guarded.GRACE_S = guarded.BEAT_S / 10, guarded.GRACE_S / 10
    made, case, found = toy(folder / "toy"), Case("sae_guided", 1, 2), []
    made.method(case.method)
    gc.freeze()
    for kill in RANK_FAULTS:
        run = RunDirectory.create(folder, kill.how)
        started = time.monotonic()
        codes = launch(made, case, run, kill)
        seconds = round(time.monotonic() - started, 1)
        said = {r: json.loads(p.read_text()) for r in range(2) if (p := run.path / f"stopped{r}.json").exists()}
        kept = sorted(p.name for p in run.checkpoints.iterdir())
        steps = sorted({row["step"] for row in read_lines(run.metrics_path)})
        found.append({"fault": asdict(kill), "exit": codes, "said": said, "checkpoints": kept, "steps_on_disk": steps, "seconds": seconds})
    return found


if __name__ == "__main__":
    place, *rest = sys.argv[1:]
    print(json.dumps(ranks(Path(place)) if rest == ["ranks"] else main(Path(place), *map(int, rest))))
