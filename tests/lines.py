"""The command lines of a README, as its reader would start them: with words of one's own, and on what this machine has."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.forks import free_port

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SCRIPT = ROOT / "experiments" / "run.py"
LAUNCHED = ROOT / "tests" / "distributed" / "launched.py"
README = ROOT / "README.md"
SHARDED = ROOT / "experiments" / "sharded" / "README.md"
LAUNCHERS = ("unlearn run", "fabric run", "torchrun", "sbatch")
SECTION = {README: "Many devices, many nodes", SHARDED: "Launching"}
"""The heading that has a page's launch lines."""


def shell_lines(heading: str, page: Path = README) -> list[list[str]]:
    """Words of the lines of the ``sh`` blocks under a heading of ``page``, comments left out."""
    section = re.split(r"\n#+ ", page.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1], maxsplit=1)[0]
    blocks = re.findall(r"```sh\n(.*?)```", section.replace("\\\n", " "), re.DOTALL)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def launch_lines(page: Path = README) -> list[list[str]]:
    """The launch lines of ``page``."""
    return [line for line in shell_lines(SECTION[page], page) if " ".join(line).startswith(LAUNCHERS)]


def startable(line: Sequence[str | Path], script: Path = SCRIPT, **changed: str) -> list[str | Path]:
    """``line`` as this machine can start it, with ``script`` in the place of experiments/run.py.

    ``changed`` are options with another value (``main_address``) or that the line does not have. Of an ``sbatch`` line, what the scheduler
    runs when it is given it; it keeps the options before the script to itself.
    """
    if line[0] == "sbatch":
        place = next(place for place, word in enumerate(line) if str(word).endswith(".sbatch"))
        return ["bash", ROOT / line[place], *line[place + 1 :]]
    made: list[str | Path] = [BIN / line[0], *(script if word == "experiments/run.py" else word for word in line[1:])]
    first = made.index("run") + 1 if line[0] == "fabric" else 1
    for name, value in changed.items():
        option = f"--{name.replace('_', '-')}"
        if option in made:
            made[made.index(option) + 1] = value
        else:
            made[first:first] = [option, value]
    return made


def command(start: str, script: Path, words: Sequence[str], page: Path = README, **changed: str) -> list[str | Path]:
    """The launch line of ``page`` that begins with ``start``, as ``startable``, with ``words`` in the place of the configuration and what
    follows it."""
    line = next(line for line in launch_lines(page) if " ".join(line).startswith(start))
    config = next(place for place, word in enumerate(line) if word.endswith(".yaml"))
    extra = [word for word in line[config + 1 :] if not word.endswith(("=DIR", ".jsonl")) and not _said(word, words)]
    return startable([*line[:config], *words, *extra], script, **changed)


def _said(word: str, words: Sequence[str]) -> bool:
    return any(other.partition("=")[0] == word.partition("=")[0] for other in words if "=" in other)


def fabric(script: Path, words: Sequence[str], page: Path = README) -> list[str | Path]:
    """``fabric run`` with two processes; a port of its own, since tests run side by side."""
    start = "fabric run --devices 2" if page == README else "fabric run --accelerator gpu --devices 8 experiments"
    return command(start, script, words, page, accelerator="cpu", devices="2", main_port=str(free_port()))


def fabric_node(node: int, address: str, port: int, words: Sequence[str], page: Path = README) -> list[str | Path]:
    """``fabric run`` on node ``node`` of two, with one process."""
    start = f"fabric run --devices 8 --num-nodes 2 --node-rank {node}"
    if page == SHARDED:
        start = "fabric run --accelerator gpu --devices 8 --num-nodes"
    changed = {"accelerator": "cpu", "devices": "1", "node_rank": str(node), "main_address": address, "main_port": str(port)}
    return command(start, LAUNCHED, words, page, **changed)


def torchrun(script: Path, words: Sequence[str], page: Path = README) -> list[str | Path]:
    """``torchrun`` with two processes."""
    return command("torchrun", script, words, page, nproc_per_node="2", master_port=str(free_port()))


def plain(words: Sequence[str], page: Path = README) -> list[str | Path]:
    """``unlearn run``, which starts the processes itself."""
    start = "unlearn run my.yaml" if page == README else "unlearn run experiments"
    return command(start, SCRIPT, words, page)


def sbatch(words: Sequence[str], page: Path = README) -> list[str | Path]:
    """What the scheduler runs when it is given the page's line."""
    return command("sbatch", SCRIPT, words, page)
