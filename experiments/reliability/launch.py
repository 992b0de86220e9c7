"""The same tiny run in one process and in two of every launcher: how far the results are apart, and how many MLflow runs were made.

    python experiments/reliability/launch.py [--only readme|sharded]      writes results/launch.json

``readme``: every launch line of README.md; ``sharded``: every one of experiments/sharded/README.md (weights shared out, fsdp2), with a
small model in the place of the large one. ``--only`` makes one of the two and keeps the figures of the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests import lines as line  # noqa: E402
from tests.distributed import launchers as start  # noqa: E402
from tests.forks import free_port  # noqa: E402
from tests.mini import make_mini  # noqa: E402

INJECTED = (
    "nothing but another launcher: two processes instead of one, on one node and on two; once SIGUSR1 in the middle, then started again"
)
EXPECTED = "difference < 1e-5, one MLflow run, every row of one process's batch in exactly one share"
SHARED_OUT = "fsdp2, "
"""Beginning of the rows of runs whose weights are shared out."""
OUT = Path(__file__).parent / "results" / "launch.json"


def main() -> None:
    """Start every launcher and write down what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="the other part stays as the file has it")
    only = parser.parse_args().only
    kept = json.loads(OUT.read_text(encoding="utf-8"))["launches"] if only and OUT.is_file() else []
    folder = Path(tempfile.mkdtemp(prefix="launch-"))
    config = make_mini(folder)
    made = {part: PARTS[part](folder, config) if only in (None, part) else _of(kept, part) for part in PARTS}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures([row for rows in made.values() for row in rows]), indent=1) + "\n")
    print(f"written to {OUT.relative_to(ROOT)}")


def _of(kept: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [row for row in kept if row["launcher"].startswith(SHARED_OUT) == (part == "sharded")]


def said(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Keep a row, and show it."""
    rows.append(row)
    print(row, flush=True)


def plain_lines(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Every launch line of README.md."""
    path = str(start.write_config(folder, config))
    whole = start.run_alone(Path(path), folder, "name=alone")
    alone = start.record_of(config, "alone")
    rows: list[dict[str, Any]] = []
    said(rows, row(config, "one process", "alone", alone, None, whole))

    def add(launcher: str, name: str, done: start.Launch) -> None:
        said(rows, row(config, launcher, name, alone, done, whole))

    def words(name: str) -> list[str]:
        return [path, f"name={name}"]

    add("fabric run", "fabric", start.launch(folder / "a", [line.fabric(line.LAUNCHED, words("fabric"))]))
    add("torchrun", "torchrun", start.launch(folder / "b", [line.torchrun(line.LAUNCHED, words("torchrun"))]))
    add("unlearn run", "plain", start.launch(folder / "c", [line.plain(words("plain"))]))
    with start.two_nodes() as (kind, address, inside):
        port = free_port()
        commands = [[*inside[node], *line.fabric_node(node, address, port, words("nodes"))] for node in (0, 1)]
        add(f"fabric run on two nodes ({kind})", "nodes", start.launch(folder / "d", commands))
    job = start.fake_slurm(folder / "slurm", line.LAUNCHED)
    add("sbatch, srun (simulated)", "slurm", start.launch(folder / "e", [line.sbatch(words("slurm"))], **job))
    job = start.fake_slurm(folder / "again", line.LAUNCHED)
    first = start.launch(folder / "f", [line.sbatch(words("again"))], SIGNAL_AT="3", **job)
    done = start.launch(folder / "g", [line.sbatch(words("again"))], **job)
    done.records = [before + after for before, after in zip(first.records, done.records, strict=True)]
    add(f"the same, SIGUSR1 before step 3 (status {first.codes[0]}), started again", "again", done)
    return rows


def sharded_lines(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Every launch line of experiments/sharded/README.md: its run ``sae``, against the same run of one process without sharding."""
    common = ["trainer.precision=32-true", "--only", "sae"]
    alone_words = start.small_sharded({**config, "out": str(folder / "one")}, *common, "trainer.strategy=auto", "trainer.devices=1")
    done = start.launch(folder / "alone", [[sys.executable, line.LAUNCHED, *alone_words]])
    if done.codes != [0]:
        sys.exit(done.output[-2000:])
    alone, whole = start.record_of({"out": str(folder / "one")}, "sharded/sae"), done.records[0]
    rows: list[dict[str, Any]] = []

    def add(launcher: str, place: str, commands: Callable[[list[str]], list[list[str | Path]]], **job: str) -> None:
        own = {**config, "out": str(folder / place), "tracking": {"uri": f"sqlite:///{folder}/{place}.db"}}
        done = start.launch(folder / f"of_{place}", commands(start.small_sharded(own, *common)), **job)
        said(rows, row(own, f"{SHARED_OUT}{launcher}", "sharded/sae", alone, done, whole))

    page = line.SHARDED
    add("unlearn run", "h", lambda words: [line.plain([*words, "trainer.devices=2"], page)])
    add("torchrun", "i", lambda words: [line.torchrun(line.LAUNCHED, words, page)])
    add("fabric run", "j", lambda words: [line.fabric(line.LAUNCHED, words, page)])
    with start.two_nodes() as (kind, address, inside):
        port = free_port()

        def nodes(words: list[str]) -> list[list[str | Path]]:
            return [[*inside[node], *line.fabric_node(node, address, port, words, page)] for node in (0, 1)]

        add(f"fabric run on two nodes ({kind})", "k", nodes)
    job = start.fake_slurm(folder / "two", line.LAUNCHED, nodes=2)
    add("sbatch, srun (simulated, two nodes)", "l", lambda words: [line.sbatch(words, page)], **job)
    return rows


PARTS: dict[str, Callable[[Path, dict[str, Any]], list[dict[str, Any]]]] = {"readme": plain_lines, "sharded": sharded_lines}


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The launches, and how many of them were not as expected."""
    alone = sum(row["ranks"] == 1 for row in rows)
    bad = [
        row["launcher"]
        for row in rows
        if row["state"] != "finished" or row["largest_difference"] >= 1e-5 or row["mlflow_runs"] != 1 or row.get("rows_astray", 0)
    ]
    return {"injected": INJECTED, "times": len(rows) - alone, "expected": EXPECTED, "lost": len(bad), "launches": rows}


def row(config: dict[str, Any], launcher: str, name: str, alone: Any, done: start.Launch | None, whole: list[Any]) -> dict[str, Any]:
    """What is kept of one launch."""
    found = start.record_of(config, name)
    uri = config["tracking"]["uri"]
    made: dict[str, Any] = {
        "launcher": launcher,
        "ranks": found.manifest["processes"]["count"],
        "nodes": found.manifest["processes"]["nodes"],
    }
    made |= {"state": found.status["state"], "largest_difference": start.difference(alone, found)}
    made["mlflow_runs"] = len(start.mlflow_runs(uri, name))
    if done is not None:
        made["exit_status"] = done.codes
    if done is not None and done.records:
        made["addresses"] = sorted({said["address"] for record in done.records for said in record})
        made["rows_astray"] = start.astray(done.records, whole)
    return made


if __name__ == "__main__":
    main()
