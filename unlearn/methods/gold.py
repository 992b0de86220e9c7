"""The gold model: trained without the forget entities. The row that forgetting is measured against.

On the embedded world it is the same recipe without those people; elsewhere ``evaluation.gold`` names it (TOFU's authors publish models that
were trained on the retain split alone: Maini et al., "TOFU", arXiv 2401.06121, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from unlearn.config.schema import TrainableConfig
from unlearn.errors import ModelError
from unlearn.methods.base import Method
from unlearn.models.decoder import base_of
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Gold(Method):
    """Takes over the weights of the gold model; a run with it measures that model."""

    name = "gold"
    family = "reference"
    summary = "the model that never saw the forget entities (`evaluation.gold`); measured, the goal of every other row"
    paper = "https://arxiv.org/abs/2401.06121"
    streams = ()
    needs = frozenset({"gold"})

    def trainable(self, n_blocks: int) -> TrainableConfig | None:
        """Every weight."""
        return TrainableConfig(mode="full")

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Zero, connected to nothing."""
        return LossTerms(torch.zeros(()), {})

    @torch.no_grad()
    def finish(self, lm: PreTrainedModel) -> None:
        """Copy the gold model's weights.

        Raises:
            ModelError: the gold model has other weights than the model of the run.
        """
        if self.context.gold is None:
            raise ValueError("gold needs a gold model in its context")
        theirs = dict(self.context.gold().named_parameters())
        for name, parameter in base_of(lm).named_parameters():
            found = theirs.get(name)
            if found is None or found.shape != parameter.shape:
                shape = "nothing" if found is None else tuple(found.shape)
                raise ModelError(
                    f"evaluation.gold must be a model of the same shape; {name} must be {tuple(parameter.shape)}, found {shape}."
                )
            parameter.copy_(found)
