"""The original model: nothing is trained. The row that every comparison starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from unlearn.methods.base import Method
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NoMethod(Method):
    """Leaves the model as it is; a run with it measures the original model."""

    name = "none"
    family = "reference"
    summary = "the original model, measured but not trained"
    paper = ""
    streams = ()
    trains = False

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Zero, connected to nothing."""
        return LossTerms(torch.zeros(()), {})
