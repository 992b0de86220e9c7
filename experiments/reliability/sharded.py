"""Training with the weights shared out over two processes (fsdp2), beside the same training in one process.

    python experiments/reliability/sharded.py [--only WORD] [--continue]

Every method of the registry that takes sharding is trained for a few steps on rows of very different lengths, in two processes of this
machine (gloo, no GPU needed) and in one, with the same global batch; then larger models show what each process holds. Figures go to
experiments/reliability/results/sharded.json after every case. ``--only`` makes the cases whose name contains WORD and leaves the others as
the file has them; ``--continue`` keeps what the file has and makes the rest.
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
from tests.distributed.sharded_models import families, shares  # noqa: E402
from tests.sharded import on_two_ranks  # noqa: E402
from tests.toys import Toy, toy  # noqa: E402

OUT = HERE / "results" / "sharded.json"
TOLERANCE = 1e-5


def takes_sharding(made: Toy, case: Case) -> bool:
    """Whether ``trainer.strategy fsdp2`` accepts the method of ``case``."""
    method = made.method(case.method, **case.settings)
    return type(method).takes_sharded(method.config)


def rank(number: int, port: int, folder: Path, made: Toy, case: Case) -> None:
    """One of two processes of a case."""
    become(number, port)
    patience = timedelta(seconds=PATIENCE_S)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group{port}", rank=number, world_size=2, timeout=patience)
    seen = attempt(made, case._replace(strategy="fsdp2"), devices=2)
    dist.destroy_process_group()
    torch.save(seen, folder / f"rank{number}.pt")


def worst(folder: Path, made: Toy, case: Case) -> dict[str, Any]:
    """Train ``case`` in one process and in two; the process that is further away."""
    for old in folder.glob("rank*.pt"):
        old.unlink()
    ranks = forked(rank, folder, made, case)
    one = attempt(made, case, devices=1)
    for process in ranks:
        process.join()
    two = [torch.load(folder / f"rank{number}.pt", weights_only=True) for number in range(2)]
    return max((compared(one, seen) for seen in two), key=lambda found: found.get("weights", float("inf")))


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


def held(folder: Path) -> dict[str, Any]:
    """What each of two processes holds, and how far sharded models of several families stray."""
    family, share = on_two_ranks([families, shares], folder)
    strays = {name: max((found[name] for found in family), key=lambda one: one["weights"]) for name in family[0]}
    kept = {name: {key: one[key] for key in ("loss", "weights", "share")} for name, one in strays.items()}
    return {"share of a process": {f"process {number}": one for number, one in enumerate(share)}, "model families": kept}


def figures(found: dict[str, dict[str, Any]], expected: int, refused: list[str]) -> dict[str, Any]:
    """What is reported of the cases made until now."""
    bad = [label for label, f in found.items() if "error" in f or max(f["loss"], f["weights"]) > TOLERANCE]
    lost = [*([f"{len(bad)} cases outside: {', '.join(bad)}"] if bad else [])]
    lost += [f"{expected - len(found)} cases not made yet"] if len(found) < expected else []
    return {
        "injected": "nothing: two processes that share weights out (fsdp2, gloo, CPU, fp32), and one process with the same global batch",
        "cases": len(found),
        "expected": f"losses and final weights within {TOLERANCE:g}; half of everything in each process",
        "lost": "; ".join(lost) or "nothing",
        "largest difference of a loss": max((f["loss"] for f in found.values() if "loss" in f), default=None),
        "largest difference of a weight": max((f["weights"] for f in found.values() if "weights" in f), default=None),
        "refused methods": refused,
    }


def main() -> int:
    """Train, compare, write the figures; 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="keep the cases that the file has")
    given = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(OUT.read_text(encoding="utf-8")) if (given.only or given.go_on) and OUT.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = toy(folder, data=uneven_data())
        cases = {label: case for label, case in CASES.items() if takes_sharding(made, case)}
        refused = sorted({case.method for case in CASES.values() if not takes_sharding(made, case)})
        found = {label: one for label, one in before.get("methods", {}).items() if label in cases}
        holding = {key: before[key] for key in ("share of a process", "model families") if key in before}
        for label, case in cases.items():
            if given.only in label and not (given.go_on and label in found):
                found[label] = worst(folder, made, case)
                write({**figures(found, len(cases), refused), **holding, "methods": found})
                print(f"{len(found)} of {len(cases)}  {label}: {found[label]}", flush=True)
        if not (given.only or (given.go_on and len(holding) == 2)):
            holding = held(folder / "models")
    ordered = {label: found[label] for label in cases if label in found}
    document = {**figures(ordered, len(cases), refused), **holding, "methods": ordered}
    write(document)
    print(f"{OUT.name}: {len(ordered)} cases, lost: {document['lost']}")
    return int(document["lost"] != "nothing")


def write(document: dict[str, Any]) -> None:
    """Replace the figures."""
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
