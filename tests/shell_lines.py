"""Command lines of the README's fenced blocks, executed on small models of the true architectures, on CPU devices."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.distributed.launchers import fake_slurm, launch
from tests.distributed.lines import BIN, ROOT, SCRIPT, free_port

if TYPE_CHECKING:
    from tests.architectures import Hub

README = ROOT / "README.md"
SMALL = [
    "optim.steps=2", "optim.warmup_steps=0", "evaluation.bootstrap=0", "evaluation.permutations=5", "evaluation.null_draws=0",
    "evaluation.max_new_tokens=3", "evaluation.samples=2", "evaluation.every=0", "data.eval_rows=8", "data.unknown_names=10",
    "data.heldout_names=5", "data.forget_entities=3", "data.max_entities=8", "tracking.enabled=false", "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
]  # fmt: skip
"""Keys that make a run short; what the README's line says comes before them and is not among them."""
FEWER = {"trainer.devices=8": "trainer.devices=2", "10.0.0.1": "127.0.0.1"}


def shell_lines(heading: str) -> list[list[str]]:
    """Words of the lines of the ``sh`` blocks under a heading of the README, comments left out."""
    text = README.read_text(encoding="utf-8")
    section = re.split(r"\n#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1)[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@dataclass
class Shell:
    """Executes lines in ``folder``; public models are found in ``hub``, PopQA's rows in ``rows``."""

    folder: Path
    hub: Hub
    rows: Path

    def _words(self, words: Sequence[str]) -> list[str]:
        return [FEWER.get(word, str(ROOT / word) if word.startswith("configs/") else word) for word in words]

    def _short(self) -> list[str]:
        return [*SMALL, f"data.root={self.rows}", f"cache={self.folder / 'cache'}", f"out={self.folder / 'runs'}"]

    def environment(self) -> dict[str, str]:
        """Variables of processes that are started."""
        made = self.hub.environment()
        return {**made, "PYTHONPATH": os.pathsep.join([str(self.hub.site), str(ROOT)]), "UNLEARN_CACHE": str(self.folder / "cache")}

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
            words = self._words(line)
            if words[0] == "sbatch":  # what the scheduler would run, with two tasks
                variables |= fake_slurm(self.folder / "slurm", SCRIPT)
                script = words.index("experiments/slurm/run.sbatch")
                commands.append(["bash", str(ROOT / words[script]), *words[script + 1 :], *self._short()])
                continue
            if words[0] == "torchrun":
                words[words.index("--nproc-per-node") + 1] = str(2 // len(lines))
                words[1:1] = ["--master-port", port]
            commands.append([str(BIN / words[0]), *words[1:], *self._short()])
        done = launch(self.folder / "said", commands, **variables)
        assert set(done.codes) == {0}, done.output[-4000:]
        return done.output
