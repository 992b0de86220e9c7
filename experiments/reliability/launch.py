"""The same tiny run in one process and in two of every launcher: how far the results are apart, and how many MLflow runs were made.

python experiments/reliability/launch.py          writes results/launch.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.distributed import launchers as start  # noqa: E402
from tests.mini import make_mini  # noqa: E402

INJECTED = (
    "nothing but another launcher: two processes instead of one, on one node and on two; once SIGUSR1 in the middle, then started again"
)
EXPECTED = "difference < 1e-5, one MLflow run, every row of one process's batch in exactly one share"
OUT = Path(__file__).parent / "results" / "launch.json"


def main() -> None:
    """Start every launcher and write down what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="launch-"))
    config = make_mini(folder)
    path = str(start.write_config(folder, config))
    whole = start.run_alone(Path(path), folder, "name=alone")
    alone = start.record_of(config, "alone")
    rows = [row(config, "one process", "alone", alone, None, whole)]
    print(rows[-1])

    def add(launcher: str, name: str, done: start.Launch) -> None:
        rows.append(row(config, launcher, name, alone, done, whole))
        print(rows[-1])

    def words(name: str) -> list[str]:
        return [path, f"name={name}"]

    add("fabric run", "fabric", start.launch(folder / "a", [start.fabric(start.LAUNCHED, words("fabric"))]))
    add("torchrun", "torchrun", start.launch(folder / "b", [start.torchrun(start.LAUNCHED, words("torchrun"))]))
    add("unlearn run", "plain", start.launch(folder / "c", [start.plain(words("plain"))]))
    with start.two_nodes() as (kind, address, inside):
        port = start.free_port()
        commands = [[*inside[node], *start.fabric_node(node, address, port, words("nodes"))] for node in (0, 1)]
        add(f"fabric run on two nodes ({kind})", "nodes", start.launch(folder / "d", commands))
    job = start.fake_slurm(folder / "slurm", start.LAUNCHED)
    add("sbatch, srun (simulated)", "slurm", start.launch(folder / "e", [start.sbatch(words("slurm"))], **job))
    job = start.fake_slurm(folder / "again", start.LAUNCHED)
    first = start.launch(folder / "f", [start.sbatch(words("again"))], SIGNAL_AT="3", **job)
    done = start.launch(folder / "g", [start.sbatch(words("again"))], **job)
    done.records = [before + after for before, after in zip(first.records, done.records, strict=True)]
    add(f"the same, SIGUSR1 before step 3 (status {first.codes[0]}), started again", "again", done)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures(rows), indent=1) + "\n")
    print(f"written to {OUT.relative_to(ROOT)}")


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The launches, and how many of them were not as expected."""
    bad = [
        row["launcher"]
        for row in rows
        if row["state"] != "finished" or row["largest_difference"] >= 1e-5 or row["mlflow_runs"] != 1 or row.get("rows_astray", 0)
    ]
    return {"injected": INJECTED, "times": len(rows) - 1, "expected": EXPECTED, "lost": len(bad), "launches": rows}


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
