"""The contract of an unlearning method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from unlearn.config.schema import MethodConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.types import IGNORE_INDEX, EntityData, LossTerms, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.latents.banks import Banks
    from unlearn.latents.selection import Selection
    from unlearn.models.reference import ReferenceStore
    from unlearn.models.sae import FrozenSAE

NEEDS: frozenset[str] = frozenset({"reference_logprobs", "reference_hidden", "sae", "banks", "rows", "gold"})
"""What a method may ask for: reference log-probabilities at answer positions, reference hidden states at the hooked block, the frozen
SAE, the activation banks with the selected latents, the source's rows with a reader that makes batches of them, and the model
that never saw the forget entities."""


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """Everything the composition root hands to a method; what the method did not ask for through ``needs`` is None."""

    n_blocks: int
    """decoder blocks of the language model"""
    hook_layer: int | None = None
    """block whose output the SAE reads; the deepest one where it reads several (``sae.layers``)"""
    sae: FrozenSAE | None = None
    banks: Banks | None = None
    selection: Selection | None = None
    reference: ReferenceStore | None = None
    data: EntityData | None = None
    """every row of the source; a method may read the streams, the refusals and the generic texts, never the evaluation sets"""
    reader: Reader | None = None
    """makes batches of rows"""
    gold: Callable[[], PreTrainedModel] | None = None
    """loads the model that never saw the forget entities"""
    seed: int = 0

    def only(self, needs: frozenset[str]) -> MethodContext:
        """This context without what is not in ``needs``."""
        reference = self.reference if needs & {"reference_logprobs", "reference_hidden"} else None
        banks, selection = (self.banks, self.selection) if "banks" in needs else (None, None)
        data, reader = (self.data, self.reader) if "rows" in needs else (None, None)
        sae, gold = self.sae if "sae" in needs else None, self.gold if "gold" in needs else None
        return replace(self, gold=gold, sae=sae, banks=banks, selection=selection, reference=reference, data=data, reader=reader)


class Method(nn.Module, ABC):
    """Turns the streams into named loss terms; never logs, never steps an optimiser.

    A plug-in is one file: its paper, a config dataclass, a pure loss and this thin class, which fetches the arguments of the loss.
    ``name``, ``family``, ``summary``, ``paper``, ``streams``, ``needs``, ``trains``, ``intervention``, ``wraps`` and ``search`` are
    literals in the class body, so that they can be listed without importing the file.

    What is called when, in this order::

        setup(lm)                 once, on the original model, its trained weights selected; again when a run is resumed
        before_step(lm, k, n)     before optimiser step k of n
        loss(lm, batch)           per micro-batch; where a step has several, more than once for each, with the same random numbers
        adjust_gradients(lm)      after the gradients of a step are complete, before clipping
        finish(lm)                once, after the last step: edits of the weights that are not gradient steps
        install(lm)               once, after that; also on a model whose final weights are loaded: what acts at inference

    ``loss`` changes nothing but generators that are attributes of the method. State that changes while training goes into
    ``get_extra_state`` (checkpoints keep it); what ``setup`` computes from the original model
    is computed again on resume and need not be kept.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    streams: ClassVar[tuple[str, ...]]
    """streams whose batches ``loss`` reads; none: there are no steps"""
    needs: ClassVar[frozenset[str]] = frozenset()
    """subset of ``NEEDS``"""
    reference_streams: ClassVar[tuple[str, ...]] = ()
    """streams for which reference quantities are stored, when ``needs`` asks for them"""
    trains: ClassVar[bool] = True
    """whether weights of the language model change, by gradient steps or by ``finish``"""
    intervention: ClassVar[bool] = False
    """whether it acts at inference: nothing in the weights changes, and whoever has the weights has the knowledge"""
    wraps: ClassVar[bool] = False
    """whether it runs another method, ``method.inner``"""
    routed: ClassVar[bool] = False
    """whether it works with an SAE that picks one of several blocks for every token (``sae.route``); False for all that edit one block"""
    sharded: ClassVar[bool] = True
    """whether it works with weights shared out over processes; False for what reads or changes weights while it trains"""
    search: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """what tuning may turn: keys of a run with ranges or choices as in a sweep; ``unlearn.config.space`` adds learning rate and steps"""
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
            "rows": context.reader,
            "gold": context.gold,
        }
        missing = sorted(need for need in self.required(config) if have[need] is None)
        if missing:
            raise ConfigError(f"method.name '{self.name}' needs {', '.join(missing)}; the run provides none.")

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """What this configuration needs of ``needs``; a method whose options need less overrides it."""
        return cls.needs

    @classmethod
    def takes_routed(cls, config: MethodConfig) -> bool:
        """Whether this configuration works with an SAE that reads several blocks, or uses neither the SAE nor the banks."""
        return cls.routed or not cls.required(config) & {"sae", "banks"}

    @classmethod
    def takes_sharded(cls, config: MethodConfig) -> bool:
        """Whether this configuration works with weights shared out over processes."""
        return cls.sharded

    @classmethod
    def streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """Streams that this configuration reads; a method whose options need fewer (or a wrapper) overrides it."""
        return cls.streams

    @classmethod
    def reference_streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """Streams for which this configuration needs reference quantities."""
        return cls.reference_streams if cls.required(config) & {"reference_logprobs", "reference_hidden"} else ()

    @classmethod
    def reference_layers(cls, config: MethodConfig, hook_layer: int, n_blocks: int) -> tuple[int, ...]:
        """Blocks whose reference output ``loss`` looks up; the hooked one unless a method overrides it."""
        return (hook_layer,)

    def trainable(self, n_blocks: int) -> TrainableConfig | None:
        """Weights that the paper trains, for ``model.trainable`` left at its defaults; None for every block up to ``forget_layer``."""
        return None

    def forget_layer(self) -> int | None:
        """Last block that the forgetting term reaches; None where it needs the logits. ``model.trainable.blocks: auto`` trains up to it."""
        return None

    def deepest_layer(self) -> int | None:
        """Last block that any loss term reaches; None where one needs the logits. Blocks above are frozen."""
        return None

    def leaves_idle(self) -> bool:
        """Whether a step may leave a trained weight without a gradient; DDP then looks for such weights at every step, which costs time."""
        return False

    def setup(self, lm: PreTrainedModel) -> None:  # noqa: B027 most methods have nothing to do here
        """Measure the original model: directions, features, reference answers. Must repeat exactly for the same seed."""

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:  # noqa: B027
        """Know where training stands: schedules, changes of phase. Called once before each optimiser step, 0 <= step < steps."""

    @abstractmethod
    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Total (scalar, fp32 or wider) and named terms for one batch of the streams in ``streams``; ``forget`` is the term that falls.

        The names are the same in every process. Means and comparisons over rows go through ``unlearn.functional.ranks``, which counts
        the rows of all processes, so every process must take the same ones in the same order, also where none of its rows has a part.
        """

    def adjust_gradients(self, lm: PreTrainedModel) -> None:  # noqa: B027
        """Change ``.grad`` of the trained weights in place (projections)."""

    def finish(self, lm: PreTrainedModel) -> None:  # noqa: B027
        """Edit the trained weights in place after the last step."""

    def install(self, lm: PreTrainedModel) -> None:  # noqa: B027
        """Put in place what acts at inference (``unlearn.models.intervene``); copies of ``lm`` keep it."""


def concatenate(batches: list[TokenBatch]) -> TokenBatch:
    """Stack batches along B, padding the token axis on the right, so that several streams share one forward.

    Labels may have more columns than the tokens that are read (``unlearn.models.forward.up_to_answers``), and keep them.
    """

    def stacked(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        width = max(tensor_BT.shape[1] for tensor_BT in tensors)
        return torch.cat([nn.functional.pad(tensor_BT, (0, width - tensor_BT.shape[1]), value=value) for tensor_BT in tensors])

    return TokenBatch(
        input_ids_BT=stacked([b.input_ids_BT for b in batches], 0),
        attention_mask_BT=stacked([b.attention_mask_BT for b in batches], 0),
        labels_BT=stacked([b.labels_BT for b in batches], IGNORE_INDEX),
        entity_end_B=torch.cat([b.entity_end_B for b in batches]),
        answer_start_B=torch.cat([b.answer_start_B for b in batches]),
        row_id_B=torch.cat([b.row_id_B for b in batches]),
    )
