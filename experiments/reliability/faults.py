"""Stores, disks, processes, data, caches and clocks break around runs; what was left of each is looked at afterwards.
Writes results/faults.json.

    python experiments/reliability/faults.py      (about two minutes)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from resume import found_by  # noqa: E402


def row_of(entry: dict[str, Any]) -> dict[str, Any]:
    """A whole run in one line of a table."""
    steps = entry.get("steps_on_disk", [])
    return {
        "injected": entry["fault"],
        "exit": entry.get("exit"),
        "ended as": entry.get("status", {}).get("state") or ", ".join(entry.get("states", [])),
        "reason": entry.get("status", {}).get("reason", ""),
        "steps on disk": len(steps),
        "steps lost": sum(step not in steps for step in range(max(steps, default=-1) + 1)),
        "report": bool(entry.get("report", True)),
        "seconds": entry.get("seconds"),
    }


def rank_row(entry: dict[str, Any]) -> dict[str, Any]:
    """A training run of two processes in one line."""
    fault, steps = entry["fault"], entry["steps_on_disk"]
    said = [part["reason"] or part["error"] for part in entry["said"].values()]
    return {
        "injected": f"{fault['how']} in process {fault['rank']} of 2, micro-batch {fault['micro_batch']}",
        "exit": entry["exit"],
        "ended as": "stopped" if all(entry["exit"]) else "",
        "reason": (said or ["saved and to be started again"])[0],
        "steps on disk": len(steps),
        "steps lost": sum(step not in steps for step in range(max(steps, default=-1) + 1)),
        "report": True,
        "seconds": entry["seconds"],
    }


def main() -> None:
    """Break everything and write what was found."""
    rows = [row_of(entry) for entry in found_by("tests.breakage") if entry["fault"] != "none"]
    rows += [rank_row(entry) for entry in found_by("tests.kills", "ranks")]
    result = {
        "injected": (
            "tracking store down, gone, hanging; disk full; damaged data and caches; a jumping clock; "
            "one process of two dead, stopped, failing, diverging"
        ),
        "times": len(rows),
        "expected": "a run that goes on or ends with one sentence; every step before the fault on disk; a report that can be made",
        "lost": sum(row["steps lost"] + (not row["report"]) for row in rows),
        "trials": rows,
    }
    out = HERE / "results" / "faults.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['times']} faults, {result['lost']} steps or reports lost; {out}")


if __name__ == "__main__":
    main()
