"""Numbers that open-unlearning (locuslab/open-unlearning, commit d3d7cf9) gives for small random logits, in float64.

``metrics.json``: inputs and per-row metrics. ``losses.json``: forget, holdout (retain) and paraphrase rows 0..3, reference logits, and the
value and gradients of its losses.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@cache
def oracle(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))


def stacked(rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """(logits_BTV in float64, labels_BT)."""
    logits_BTV = torch.tensor([row["logits"] for row in rows], dtype=torch.float64)
    return logits_BTV, torch.tensor([row["labels"] for row in rows])


def column(by_index: dict[str, dict[str, Any]], key: str) -> Tensor:
    """Values of ``key`` in the order of the rows."""
    return torch.tensor([by_index[str(i)][key] for i in range(len(by_index))], dtype=torch.float64)
