"""Training with the weights shared out over two processes (fsdp2), beside the same training in one process.

    python experiments/reliability/sharded.py [--only WORD]

Every method of the registry that takes sharding is trained for a few steps on rows of very different lengths, in two processes of this
machine (gloo, no GPU needed) and in one, with the same global batch; then a larger model shows what each process holds. ``--only`` takes
the cases whose name contains WORD. Figures: experiments/reliability/results/sharded.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from tests.distributed.every_method import CASES, PATIENCE_S, Case, attempt, become, forked, uneven_data  # noqa: E402
from tests.distributed.test_sharded import families, shares  # noqa: E402
from tests.sharded import on_two_ranks  # noqa: E402
from tests.toys import Toy, toy  # noqa: E402

TOLERANCE = 1e-5


def takes_sharding(made: Toy, case: Case) -> bool:
    """Whether ``trainer.strategy fsdp2`` accepts the method of ``case``."""
    method = made.method(case.method, **case.settings)
    return type(method).takes_sharded(method.config)


def rank(number: int, port: int, folder: Path, made: Toy, cases: dict[str, Case]) -> None:
    """One of two processes: every case in turn, each in a process group of its own."""
    become(number, port)
    seen = {}
    for place, (label, case) in enumerate(cases.items()):
        store, patience = f"file://{folder}/group{place}", timedelta(seconds=PATIENCE_S)
        dist.init_process_group("gloo", init_method=store, rank=number, world_size=2, timeout=patience)
        seen[label] = attempt(made, case._replace(strategy="fsdp2"), devices=2)
        dist.destroy_process_group()
    torch.save(seen, folder / f"rank{number}.pt")


def compared(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Largest differences of the losses (relative to 1 + the loss) and of the final weights, and how far training moved the weights."""
    errors = [said["error"] for said in (one, two) if "error" in said]
    if errors:
        return {"error": errors[0].strip().splitlines()[-1]}
    pairs = [(a["train/loss"], b["train/loss"]) for a, b in zip(one["terms"], two["terms"], strict=True)]
    return {
        "loss": max(abs(a - b) / (1 + abs(a)) for a, b in pairs),
        "weights": max((one["weights"][name] - two["weights"][name]).abs().max().item() for name in one["weights"]),
        "moved": one["moved"],
    }


def main() -> int:
    """Train, compare, write the figures; 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = toy(folder, data=uneven_data())
        cases = {label: case for label, case in CASES.items() if takes_sharding(made, case) and only in label}
        ranks = forked(rank, folder, made, cases)
        one = {label: attempt(made, case, devices=1) for label, case in cases.items()}
        for process in ranks:
            process.join()
        two = [torch.load(folder / f"rank{number}.pt", weights_only=True) for number in range(2)]
        differences = {label: [compared(one[label], seen[label]) for seen in two] for label in cases}
        family, held = on_two_ranks([families, shares], folder / "models")
    worst = {label: max(found, key=lambda f: f.get("weights", float("inf"))) for label, found in differences.items()}
    bad = [label for label, f in worst.items() if "error" in f or max(f["loss"], f["weights"]) > TOLERANCE]
    figures = {
        "injected": "nothing: two processes that share weights out (fsdp2, gloo, CPU, fp32), and one process with the same global batch",
        "cases": len(cases),
        "expected": f"losses and final weights within {TOLERANCE:g}; half of everything in each process",
        "lost": f"{len(bad)} cases outside: {', '.join(bad)}" if bad else "nothing",
        "largest difference of a loss": max((f["loss"] for f in worst.values() if "loss" in f), default=None),
        "largest difference of a weight": max((f["weights"] for f in worst.values() if "weights" in f), default=None),
        "refused methods": sorted({case.method for case in CASES.values() if not takes_sharding(made, case)}),
        "share of a process (weights, gradients, optimiser state)": held,
        "model families (two processes)": {
            key: {k: found[key][k] for k in ("loss", "weights", "share")} for found in family for key in found
        },
        "methods": worst,
    }
    path = HERE / "results" / "sharded.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    sys.stdout.write(f"{path}: {len(cases)} cases, {len(bad)} outside {TOLERANCE:g}\n")
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
