"""Every method of the registry under DDP on two processes, against one process with the same batches.

``python experiments/reliability/ddp_equality.py`` trains every case of ``tests/distributed/every_method.py`` and writes
``results/ddp_equality.json``: for each the largest difference of a logged loss term (relative where the term is above 1) and of a trained
weight, how far training moved a weight, and the strategy that was chosen; the control in which every process counts its own tokens; and
what differs between a whole run on one device and on two.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.distributed.comparison import (  # noqa: E402
    TOLERANCE,
    Found,
    differing,
    gradient_difference,
    logged,
    loss_difference,
    results,
    trained,
    weight_difference,
)
from tests.distributed.every_method import ALL, APART, CASES, LR, STEPS  # noqa: E402


def figures(found: Found, label: str) -> dict[str, Any]:
    """What is reported of one case."""
    one, *ranks = found.one[label], *(seen[label] for seen in found.ranks)
    errors = [seen["error"] for seen in (one, *ranks) if "error" in seen]
    if errors:
        return {"error": errors[0].strip().splitlines()[-1]}
    return {
        "loss_difference": max(loss_difference(one, seen) for seen in ranks),
        "weight_difference": max(weight_difference(one, seen) for seen in ranks),
        "gradient_difference": max(gradient_difference(one, seen) for seen in ranks),
        "moved": one["moved"],
        "strategy": ranks[0]["strategy"],
    }


def main() -> None:
    """Train, compare, write."""
    with tempfile.TemporaryDirectory() as folder:
        found = trained(Path(folder))
        cases = {label: figures(found, label) for label in ALL}
        unlike = {
            "results.json": differing(results(found, "one"), results(found, "two")),
            "metrics.jsonl": {" ".join(map(str, k)): v for k, v in differing(logged(found, "one"), logged(found, "two")).items()},
        }
        compared = {"results.json": len(results(found, "one")), "metrics.jsonl": len(logged(found, "one"))}
    control = cases.pop(APART.label)
    failed = [k for k in CASES if "error" in cases[k] or max(cases[k]["loss_difference"], cases[k]["weight_difference"]) > TOLERANCE]
    document = {
        "injected": f"{STEPS} steps of AdamW ({LR:g}) on 2 gloo processes under DDP against 1 process; rows of unequal length",
        "expected": f"loss terms and final weights within {TOLERANCE}",
        "cases": len(CASES),
        "outside": failed,
        "largest_loss_difference": max(cases[k].get("loss_difference", float("inf")) for k in CASES),
        "largest_weight_difference": max(cases[k].get("weight_difference", float("inf")) for k in CASES),
        "control_with_means_per_process": control,
        "whole_run_compared": compared,
        "whole_run_unlike": unlike,
        "by_case": cases,
    }
    target = Path(__file__).parent / "results" / "ddp_equality.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
