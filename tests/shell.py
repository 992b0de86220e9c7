"""Command lines of the README, executed on small models of the true architectures, on CPU devices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.distributed.launchers import fake_slurm, launch
from tests.forks import free_port
from tests.lines import LAUNCHED, ROOT, startable

if TYPE_CHECKING:
    from tests.architectures import Hub

SMALL = [
    "optim.steps=2", "optim.warmup_steps=0", "evaluation.bootstrap=0", "evaluation.permutations=5", "evaluation.null_draws=0",
    "evaluation.max_new_tokens=3", "evaluation.samples=2", "evaluation.every=0", "data.eval_rows=8", "data.unknown_names=10",
    "data.heldout_names=5", "data.forget_entities=3", "data.max_entities=8", "tracking.enabled=false", "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
]  # fmt: skip
"""Keys that make a run short; what the README's line says comes before them and is not among them."""
FEWER = {"trainer.devices=8": "trainer.devices=2", "10.0.0.1": "127.0.0.1"}


def looking_at(hub: Hub) -> dict[str, str]:
    """Variables of a process that finds public models in ``hub``."""
    return {**hub.environment(), "PYTHONPATH": os.pathsep.join([str(hub.site), str(ROOT)])}


@dataclass
class Shell:
    """Executes lines in ``folder``; public models are found in ``hub``, PopQA's rows in ``rows``; what is started takes over what
    another process has loaded (``forks``, from ``tests.loaded``)."""

    folder: Path
    hub: Hub
    rows: Path
    forks: Mapping[str, str]

    def _words(self, words: Sequence[str]) -> list[str]:
        return [FEWER.get(word, str(ROOT / word) if word.startswith("configs/") else word) for word in words]

    def _short(self) -> list[str]:
        return [*SMALL, f"data.root={self.rows}", f"cache={self.folder / 'cache'}", f"out={self.folder / 'runs'}"]

    def environment(self) -> dict[str, str]:
        """Variables of processes that are started."""
        return {**looking_at(self.hub), "UNLEARN_CACHE": str(self.folder / "cache"), **self.forks}

    def here(self, words: Sequence[str]) -> int:
        """Exit status of an ``unlearn`` line in this process."""
        from unlearn.cli import main

        assert words[0] == "unlearn"
        with pytest.raises(SystemExit) as ended:
            main([*self._words(words[1:]), *self._short()])
        return int(ended.value.code or 0)

    def started(self, *lines: Sequence[str]) -> str:
        """Start the lines at once, each as the README has it but with two processes in all; what they said, if all went well."""
        port, variables, commands = str(free_port()), self.environment(), []
        for line in lines:
            few = {"nproc_per_node": str(2 // len(lines)), "master_port": port} if line[0] == "torchrun" else {}
            if line[0] == "sbatch":
                variables |= fake_slurm(self.folder / "slurm", LAUNCHED)
            commands.append([*startable(self._words(line), LAUNCHED, **few), *self._short()])
        done = launch(self.folder / "said", commands, **variables)
        assert set(done.codes) == {0}, done.output[-4000:]
        return done.output
