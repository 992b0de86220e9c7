"""Training is killed at random points, whole runs are killed, told to stop and handed damaged checkpoints; each is resumed and held against
one that was left alone. Writes results/resume.json.

    python experiments/reliability/resume.py [KILLS]      (20 kills; about two minutes)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def found_by(module: str, *arguments: str) -> Any:
    """What a module of tests/ prints as its last line."""
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        command = (sys.executable, "-m", module, folder, *arguments)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1].replace(f"{folder}/", ""))


def row_of(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial in one line of a table."""
    if "fault" in trial:
        return {"injected": trial["fault"], "exit": trial["exit"], "went on from": "", "different": different(trial)}
    case, kill = trial["case"], trial["kill"]
    where = f"{case['method']}, accumulate {case['accumulate']}, {case['ranks']} process(es)"
    what = f"{kill['how']} in rank {kill['rank']}, micro-batch {kill['micro_batch']}: {kill['moment']}"
    return {"injected": f"{where}: {what}", "exit": trial["killed"], "went on from": trial.get("from"), "different": different(trial)}


def different(trial: dict[str, Any]) -> list[str]:
    """What is not the same as in the run that was left alone."""
    failed = (
        [] if set(trial["resumed"] if isinstance(trial["resumed"], list) else [trial["resumed"]]) == {0} else ["it could not be resumed"]
    )
    return failed + [name for name, same in trial.get("equal", {}).items() if not same]


def main() -> None:
    """Run the trials and write what was found."""
    kills = found_by("tests.kills", *sys.argv[1:2])
    wholes = found_by("tests.wholes")
    rows = [row_of(trial) for trial in (*kills["trials"], *kills["ranks"], *wholes["trials"])]
    result = {
        "injected": (
            "SIGKILL at random moments of training, one process and two; "
            "SIGKILL, SIGTERM, SIGUSR1, Ctrl-C and damaged checkpoints in whole runs"
        ),
        "times": len(rows),
        "expected": (
            "the bits of the weights, the random state of every rank, and every row of metrics.jsonl and MLflow exactly once, "
            "as in a run that was left alone"
        ),
        "lost": sum(bool(row["different"]) for row in rows),
        "rows_of_metrics": wholes["rows"],
        "rows_of_mlflow": wholes["mlflow_rows"],
        "trials": rows,
    }
    out = HERE / "results" / "resume.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['times']} trials, {result['lost']} with a difference; {out}")


if __name__ == "__main__":
    main()
