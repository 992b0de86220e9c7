"""Runs ``every_method`` and compares what one process and two saw."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.forks import told_by

TOLERANCE = 1e-5
"""Largest difference of a loss (relative to 1 or to the loss, whichever is more) and of a weight."""

Seen = dict[str, Any]


class Found(NamedTuple):
    """What one process and two saw of every case, and the folder of the whole runs."""

    one: dict[str, Seen]
    ranks: tuple[dict[str, Seen], dict[str, Seen]]
    runs: Path


def trained(folder: Path) -> Found:
    """Run ``every_method`` in ``folder``."""
    told_by("tests.distributed.every_method", folder, seconds=900)
    one, first, second = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("one", "rank0", "rank1"))
    return Found(one, (first, second), folder / "runs")


def loss_difference(a: Seen, b: Seen) -> float:
    """Largest difference of any logged term at any step, relative to the term where that is above 1."""
    assert [row.keys() for row in a["terms"]] == [row.keys() for row in b["terms"]]
    return max(abs(x[k] - y[k]) / max(1.0, abs(x[k])) for x, y in zip(a["terms"], b["terms"], strict=True) for k in x)


def gradient_difference(a: Seen, b: Seen) -> float:
    """Largest difference of the length of the gradient of any step, relative to it where it is above 1. AdamW would not show it."""
    return max(abs(x - y) / max(1.0, x) for x, y in zip(a["gradients"], b["gradients"], strict=True))


def weight_difference(a: Seen, b: Seen) -> float:
    """Largest difference of any trained weight."""
    assert a["weights"].keys() == b["weights"].keys()
    return max((a["weights"][name] - b["weights"][name]).abs().max().item() for name in a["weights"])


def results(found: Found, name: str) -> dict[str, float]:
    """``results.json`` of a run without what it cost."""
    numbers = json.loads((found.runs / name / "results.json").read_text())
    return {key: value for key, value in numbers.items() if not key.startswith("cost/")}


def differing(a: dict[Any, Any], b: dict[Any, Any]) -> dict[Any, tuple[Any, Any]]:
    """What is not the same up to the tolerance, numbers relative to themselves where they are above 1."""
    assert a.keys() == b.keys()

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, float) and isinstance(y, float):
            return abs(x - y) <= TOLERANCE * max(1.0, abs(x)) or (math.isnan(x) and math.isnan(y))
        return bool(x == y)

    return {key: (a[key], b[key]) for key in a if not same(a[key], b[key])}


def logged(found: Found, name: str) -> dict[tuple[int, str, str], float]:
    """``metrics.jsonl`` of a run without what it cost, by step, stage and key."""
    rows = [json.loads(line) for line in (found.runs / name / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not row["key"].startswith("cost/")]
    kept = {(row["step"], row["stage"], row["key"]): row["value"] for row in rows}
    assert len(kept) == len(rows)
    return kept
