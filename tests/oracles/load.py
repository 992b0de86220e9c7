"""Numbers that open-unlearning (locuslab/open-unlearning, commit d3d7cf9) gives for small random logits, in float64.

``metrics.json``: inputs and per-row metrics. ``losses.json``: forget, holdout (retain) and paraphrase rows 0..3, reference logits, and the
value and gradients of its losses.

``sae.json``: a small JumpReLU SAE with what three code bases do with it, in float64: feature statistics and losses of CRISP
(tomerashuach/CRISP), clamps and selection of SAEBench's unlearning evaluation, clamps of DSG (aashiqmuhamed/DynamicSAEGuardrails).
``hidden_*`` are [hidden_states index, B, T, D]; position 0 is the beginning-of-sequence token.
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


class OracleSAE:
    """The SAE of ``sae.json`` in float64, with the interface of FrozenSAE that losses and clamps use."""

    architecture = "jumprelu"

    def __init__(self) -> None:
        for name, value in oracle("sae")["sae"].items():
            setattr(self, name, torch.tensor(value, dtype=torch.float64))
        self.sae = self

    def preactivations(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND @ self.W_enc + self.b_enc

    def encode(self, hidden_ND: Tensor, latents_S: Tensor | None = None) -> Tensor:
        pre_NF = self.preactivations(hidden_ND)
        acts_NF = pre_NF.relu() * (pre_NF > self.threshold)
        return acts_NF if latents_S is None else acts_NF[..., latents_S]

    def decode(self, acts_NF: Tensor, hidden_ND: Tensor | None = None) -> Tensor:
        return acts_NF @ self.W_dec + self.b_dec


def sae_hidden(side: str, index: int) -> tuple[Tensor, Tensor]:
    """(hidden_BTD in float64, mask_BT without padding and position 0) of ``sae.json``; ``side``: target or benign."""
    data = oracle("sae")
    mask_BT = torch.tensor(data[f"mask_{side}"]).bool()
    mask_BT[:, 0] = False
    return torch.tensor(data[f"hidden_{side}"][index], dtype=torch.float64), mask_BT
