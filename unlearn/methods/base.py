"""The contract of an unlearning method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from unlearn.config.schema import MethodConfig
from unlearn.errors import ConfigError
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.latents.banks import Banks
    from unlearn.latents.selection import Selection
    from unlearn.models.reference import ReferenceStore
    from unlearn.models.sae import FrozenSAE

NEEDS: frozenset[str] = frozenset({"reference_logprobs", "reference_hidden", "sae", "banks"})
"""What a method may ask for: reference log-probabilities at answer positions, reference hidden states at the hooked block, the frozen
SAE, the activation banks with the selected latents."""


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """Everything the composition root hands to a method; what the method did not ask for through ``needs`` is None."""

    n_blocks: int
    """decoder blocks of the language model"""
    hook_layer: int | None = None
    """block whose output the SAE reads"""
    sae: FrozenSAE | None = None
    banks: Banks | None = None
    selection: Selection | None = None
    reference: ReferenceStore | None = None
    seed: int = 0


class Method(nn.Module, ABC):
    """Turns four streams into named loss terms; never logs, never steps an optimiser.

    A plug-in is one file: its paper, a config dataclass, a pure loss and this thin class, which fetches the arguments of the loss.
    ``name``, ``family``, ``summary``, ``paper``, ``streams`` and ``needs`` are literals in the class body, so that they can be
    listed without importing the file.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    streams: ClassVar[tuple[str, ...]]
    """streams whose batches ``loss`` reads"""
    needs: ClassVar[frozenset[str]] = frozenset()
    """subset of ``NEEDS``"""
    reference_streams: ClassVar[tuple[str, ...]] = ()
    """streams for which reference quantities are stored, when ``needs`` asks for them"""
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        """Check that the context holds what ``needs`` promises.

        Raises:
            ConfigError: something that this method needs was not given.
        """
        super().__init__()
        self.config = config
        self.context = context
        have: dict[str, object] = {
            "reference_logprobs": context.reference,
            "reference_hidden": context.reference,
            "sae": context.sae,
            "banks": context.banks,
        }
        missing = sorted(need for need in self.required(config) if have[need] is None)
        if missing:
            raise ConfigError(f"method.name '{self.name}' needs {', '.join(missing)}; the run provides none.")

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """What this configuration needs of ``needs``; a method whose options need less overrides it."""
        return cls.needs

    def forget_layer(self) -> int | None:
        """Last block that the forgetting term reaches; None where it needs the logits. ``model.trainable.blocks: auto`` trains up to it."""
        return None

    def deepest_layer(self) -> int | None:
        """Last block that any loss term reaches; None where one needs the logits. Blocks above are frozen."""
        return None

    @abstractmethod
    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Total (scalar, fp32 or wider) and its named terms for one batch of the streams in ``streams``."""


def concatenate(batches: list[TokenBatch]) -> TokenBatch:
    """Stack batches along B, padding the token axis on the right, so that several streams share one forward."""
    width = max(b.input_ids_BT.shape[1] for b in batches)

    def pad(tensor_BT: torch.Tensor, value: int) -> torch.Tensor:
        return nn.functional.pad(tensor_BT, (0, width - tensor_BT.shape[1]), value=value)

    return TokenBatch(
        input_ids_BT=torch.cat([pad(b.input_ids_BT, 0) for b in batches]),
        attention_mask_BT=torch.cat([pad(b.attention_mask_BT, 0) for b in batches]),
        labels_BT=torch.cat([pad(b.labels_BT, -100) for b in batches]),
        entity_end_B=torch.cat([b.entity_end_B for b in batches]),
        answer_start_B=torch.cat([b.answer_start_B for b in batches]),
        row_id_B=torch.cat([b.row_id_B for b in batches]),
    )
