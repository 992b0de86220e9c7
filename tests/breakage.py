"""Whole runs in which something breaks: the store, the disk, the data, a cache, the clock.

``python -m tests.breakage FOLDER`` does what ``tests/test_faults.py`` and ``experiments/reliability/faults.py`` judge, and prints what was
found as one line of JSON.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import unlearn.callbacks.guard
import unlearn.evaluation.suite
import unlearn.latents.banks
import unlearn.models.reference
import unlearn.tracking.files
import unlearn.tracking.mlflow
from tests.forks import ended, forked, free_port
from tests.toys import toy
from tests.tracking.stores import new_store
from tests.wholes import Fault, Lab, flip
from unlearn.cli.run import compare
from unlearn.methods.sae_guided import SAEGuided
from unlearn.tracking.files import read_json, read_lines


def before_step(step: int, action: Callable[[], None]) -> Fault:
    """Do something in the middle of training."""

    def inject() -> None:
        before, count = SAEGuided.before_step, [0]

        def hook(self: Any, *arguments: Any) -> None:
            if count[0] == step:
                action()
            count[0] += 1
            before(self, *arguments)

        SAEGuided.before_step = hook  # type: ignore[method-assign]

    return inject


def server_that_leaves(port: int, folder: Path, step: int) -> Fault:
    """MLflow's own server in a thread of the child, taken away before a step."""

    def inject() -> None:
        from tests.tracking.test_mlflow_away import Server

        server = Server(folder)
        server.port = port
        server.start()
        unlearn.tracking.mlflow.FLUSH_S = 0.0
        before_step(step, server.stop)()

    return inject


def impatient() -> None:
    """Wait for a silent store for less time than a user would."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"
    unlearn.tracking.mlflow.PATIENCE_S = unlearn.tracking.mlflow.STALL_S = 2.0


def limit_file_size(size: int) -> None:
    """The kernel refuses every write beyond ``size`` bytes of a file, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full_disk(folder: Path) -> Fault:
    """From step 3 on nothing in ``folder`` can be written that needs new room: real files, and the kernel's answer for a full device."""

    def inject() -> None:
        def full(*_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def action() -> None:
            terminal = subprocess.Popen(("cat",), stdin=subprocess.PIPE)  # what is printed goes elsewhere than on the full disk
            for stream in (1, 2):
                os.dup2(terminal.stdin.fileno(), stream)  # type: ignore[union-attr]
            unlearn.tracking.files.tempfile.mkstemp = full  # type: ignore[assignment]
            limit_file_size((folder / "metrics.jsonl").stat().st_size)

        before_step(3, action)()

    return inject


def jumping_clock() -> None:
    """``time.time`` leaps hours forwards and backwards at every call."""
    true, calls = time.time, [0]

    def jump() -> float:
        calls[0] += 1
        return true() + (-1) ** calls[0] * 3 * 3600

    time.time = jump


def counted(path: Path) -> Fault:
    """Write a line whenever something is built for the cache."""

    def inject() -> None:
        def count(module: Any, name: str) -> None:
            build = getattr(module, name)

            def built(*arguments: Any, **named: Any) -> Any:
                with path.open("a") as file:
                    file.write(f"{name}\n")
                return build(*arguments, **named)

            setattr(module, name, built)

        count(unlearn.latents.banks.Banks, "save")
        count(unlearn.models.reference, "write_store")
        count(unlearn.evaluation.suite, "write_atomic")

    return inject


class Breakage:
    """All faults, one after the other, and what was left of each run."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder)
        self.lab.config["tracking"] = {"enabled": False}
        self.folder = folder
        self.found: list[dict[str, Any]] = []

    def run(self, fault: str, name: str, inject: Fault = lambda: None, **sections: Any) -> None:
        """One run with a fault."""
        started = time.monotonic()
        path, code, said = self.lab.start(name, inject, **sections)
        steps = [row["step"] for row in read_lines(path / "metrics.jsonl") if row["key"] == "train/loss"]
        self.found.append(
            {
                "fault": fault,
                "name": name,
                "exit": code,
                "said": " ".join(said.split())[-1500:],
                "status": read_json(path / "status"),
                "steps_on_disk": steps,
                "results": len(read_json(path / "results.json")),
                "seconds": round(time.monotonic() - started, 1),
                "checkpoints": sorted(p.name for p in (path / "checkpoints").glob("*")),
            }
        )

    def tracking(self) -> None:
        """Stores that are away, leave, or hang."""
        self.run("the store is down at the start", "down", impatient, tracking={"uri": f"http://127.0.0.1:{free_port()}"})
        port = free_port()
        leaving = server_that_leaves(port, self.folder, 3)
        self.run("the store goes away at step 3", "leaves", lambda: (impatient(), leaving()), tracking={"uri": f"http://127.0.0.1:{port}"})
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(64)
            uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
            self.run("the store hangs: it takes connections and never answers", "hangs", impatient, tracking={"uri": uri})

    def disk(self) -> None:
        """Disks that take no more."""
        self.run("no room for the checkpoint of step 4", "small", before_step(3, lambda: limit_file_size(30_000)))
        self.run("no room for anything from step 3 on", "full", full_disk(self.folder / "runs" / "full"))

    def numbers(self) -> None:
        """A loss that leaves the numbers, and a clock that leaves the hours."""
        self.run("the loss is not finite", "diverges", optim={"steps": 20, "lr": 1e30, "clip": 0}, method={"name": "gradient_ascent"})
        self.run("the clock jumps by hours at every look", "clock", jumping_clock, tracking=self.sqlite())
        took = read_json(self.folder / "runs" / "clock" / "results.json").get("cost/train_seconds", -1.0)
        self.found[-1]["train_seconds"] = took

    def sqlite(self) -> dict[str, str]:
        """A store of its own."""
        return {"uri": new_store(self.folder / "clock.db")}

    def rows(self) -> None:
        """Data that cannot be read."""
        whole = (self.folder / "rows.jsonl").read_bytes().splitlines(keepends=True)
        for name, line in (("torn", whole[4][: len(whole[4]) // 2] + b"\n"), ("bytes", b'{"question": "\xff"}\n')):
            path = self.folder / f"{name}.jsonl"
            path.write_bytes(b"".join([*whole[:4], line, *whole[5:]]))
            data = {**self.lab.config["data"], "path": str(path)}  # type: ignore[dict-item]
            self.run(f"line 5 of the data is damaged ({name})", name, data=data)

    def caches(self) -> None:
        """One bit of each cached file is turned; then the file is deleted, as the message says, and the run made again."""
        cache = self.folder / "cache"
        self.run("none", "calm")
        for kind, pattern in (("banks", "banks/*.safetensors"), ("reference", "reference/*/final.npy"), ("base", "base/*.json")):
            file = next(cache.glob(pattern))
            flip(file)
            self.run(f"the cached {kind} are damaged", f"{kind}_damaged")
            self.found[-1]["file"] = str(file)
            folder = file.parent if kind == "reference" else file
            if folder.is_dir():
                for part in folder.iterdir():
                    part.unlink()
                folder.rmdir()
            else:
                folder.unlink()
            self.run(f"the cached {kind} have been deleted", f"{kind}_again")

    def together(self) -> None:
        """Two processes want the same caches at once."""
        built, cache = self.folder / "built.txt", str(self.folder / "shared")
        pids = [forked(lambda name=name: self._one(name, built, cache), self.folder / f"{name}.out") for name in ("twin_a", "twin_b")]  # type: ignore[misc]
        codes = [ended(pid) for pid in pids]
        lines = sorted(built.read_text().split())
        states = [read_json(self.folder / "runs" / name / "status").get("state") for name in ("twin_a", "twin_b")]
        self.found.append({"fault": "two processes build the same caches at once", "exit": codes, "built": lines, "states": states})

    def _one(self, name: str, built: Path, cache: str) -> None:
        _, code, _ = self.lab.start(name, counted(built), cache=cache)
        sys.exit(code)

    def reports(self) -> None:
        """A report of each run, made when all is over."""

        def work() -> None:
            for entry in self.found:
                if "name" in entry:
                    compare([self.folder / "runs" / entry["name"]], self.folder / f"{entry['name']}.html")

        code = ended(forked(work, self.folder / "reports.txt"))
        for entry in self.found:
            if "name" in entry:
                report = self.folder / f"{entry['name']}.html"
                entry["report"] = report.stat().st_size if report.exists() else 0
        if code:
            self.found.append({"fault": "a report cannot be made", "said": (self.folder / "reports.txt").read_text()[-3000:]})


def main(folder: Path) -> list[dict[str, Any]]:
    """Every fault."""
    torch.set_num_threads(1)
    toy(folder / "toy").method("sae_guided")  # imports, once for all children
    gc.freeze()
    trials = Breakage(folder)
    for part in (trials.caches, trials.tracking, trials.disk, trials.numbers, trials.rows, trials.together, trials.reports):
        part()
    return trials.found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
