"""Value and gradients of a loss against ``losses.json``."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.oracles.load import oracle, stacked


class Side(NamedTuple):
    """Logits in float64 with gradients on, labels, token ids, reference logits."""

    logits_BTV: Tensor
    labels_BT: Tensor
    ids_BT: Tensor
    ref_BTV: Tensor


def side(name: str) -> Side:
    """``forget`` or ``holdout`` (the retain rows)."""
    inputs = oracle("losses")["inputs"]
    logits_BTV, labels_BT = stacked(inputs[name])
    ids_BT = torch.tensor([row["input_ids"] for row in inputs[name]])
    return Side(logits_BTV.requires_grad_(), labels_BT, ids_BT, torch.tensor(inputs["ref_logits"][name], dtype=torch.float64))


def agrees(name: str, loss: Tensor, forget: Side | None = None, retain: Side | None = None) -> None:
    """The loss, and its gradients at the logits, are those of open-unlearning's ``name`` to 1e-6."""
    expected = oracle("losses")["losses"][name]
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    if forget is not None:
        got, row = forget.logits_BTV.grad, torch.tensor(expected["grad_forget_row0"], dtype=torch.float64)
        assert got is not None
        torch.testing.assert_close(got[0], row, rtol=0, atol=1e-6)
        assert got.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_forget"], abs=1e-6)
    if retain is not None:
        got = retain.logits_BTV.grad
        assert got is not None
        assert got.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_retain"], abs=1e-6)
