"""Edits that stay in place: a block's output changed at every forward, in scoring and in generation alike.

Hooks sit on the model, so whatever runs it (evaluation, attacks, export checks) meets the edit, and ``copy.deepcopy`` takes it along. The
weights are as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.models.capture import check_layer
from unlearn.models.decoder import blocks_of, decoder_of


@dataclass
class Seen:
    """What an edit may know about the forward pass it is in.

    ``content_BT`` is True on the tokens of this pass that are neither padding nor beginning-of-sequence. ``memory`` is empty when a text
    starts and stays while it is generated token by token (it lives as long as the key-value cache).
    """

    content_BT: Tensor
    memory: dict[str, Any] = field(default_factory=dict)


Edit = Callable[[Tensor, Seen], Tensor]
"""``edit(hidden_BTD, seen)`` gives the new output of the block, same shape and dtype."""


@dataclass
class Handle:
    """Takes an intervention off again."""

    handles: list[Any]

    def remove(self) -> None:
        """Remove every hook; the model computes what its weights say."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def _content(kwargs: dict[str, Any], args: tuple[Any, ...], bos_id: int | None) -> Tensor:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if ids is None:  # embeddings were given: every token counts
        embeds = kwargs["inputs_embeds"]
        return torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    content_BT: Tensor = torch.ones_like(ids, dtype=torch.bool) if bos_id is None else ids != bos_id
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        content_BT = content_BT & mask[:, -ids.shape[1] :].bool()
    return content_BT


def intervene(lm: nn.Module, edits: dict[int, Edit], bos_id: int | None = None) -> Handle:
    """Edit the outputs of blocks in every forward pass from now on.

    Args:
        lm: the language model; wrapped by peft or not.
        edits: edit by block (0-based).
        bos_id: token that is never content (SAEs are not trained on it); None where the tokenizer has none.

    Raises:
        ModelError: a layer is out of range.
    """
    for layer in edits:
        check_layer(lm, layer)
    current: list[Seen] = []

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("past_key_values")
        memory: dict[str, Any] = {}
        if cache is not None:
            memory = cache.__dict__.setdefault("unlearn_memory", memory)
        current[:] = [Seen(_content(kwargs, args, bos_id), memory)]

    def hook(edit: Edit) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            changed = edit(first, current[0]).to(first.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return after

    handles = [decoder_of(lm).register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [blocks_of(lm)[layer].register_forward_hook(hook(edit)) for layer, edit in edits.items()]
    return Handle(handles)
