"""Edits that stay in place: a block's output changed at every forward, in scoring and in generation alike.

Hooks sit on the model, so whatever runs it (evaluation, attacks, export checks) meets the edit, and ``copy.deepcopy`` takes it along. The
weights are as they were: whoever has them has the knowledge.

Works for batches padded on either side, with and without a key-value cache, with early exit (``unlearn.models.capture``) and under peft.
Not followed: anything that reorders or shortens a cache (beam search, assisted decoding), for an edit that keeps a memory; masks that are
not [B, T] of tokens, which say nothing about padding here; and gradient checkpointing with another forward between a pass and its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.models.capture import EMBEDDINGS, check_layer
from unlearn.models.decoder import blocks_of, decoder_of

_MEMORY = "unlearn_memory"


@dataclass
class Seen:
    """What an edit may know about the forward pass it is in.

    ``content_BT`` is True on the tokens of this pass that are neither padding nor beginning-of-sequence. ``memory`` is empty when a text
    starts and stays while it is generated token by token (it lives as long as the key-value cache); every block has its own.
    """

    content_BT: Tensor
    memory: dict[str, Any] = field(default_factory=dict)


Edit = Callable[[Tensor, Seen], Tensor]
"""``edit(hidden_BTD, seen)`` gives the new output of the block, same shape."""


@dataclass
class Handle:
    """Takes an intervention off the model it was put on; copies of that model keep theirs."""

    handles: list[Any]

    def remove(self) -> None:
        """Remove every hook; the model computes what its weights say."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def content_tokens(ids_BT: Tensor, mask_BT: Tensor | None, bos_id: int | None) -> Tensor:
    """True on tokens that are neither padding nor beginning-of-sequence, [B, T].

    >>> content_tokens(torch.tensor([[1, 5, 6, 0]]), torch.tensor([[1, 1, 1, 0]]), bos_id=1)
    tensor([[False,  True,  True, False]])

    Args:
        ids_BT: tokens of this pass.
        mask_BT: 1 on tokens; the last T columns count (with a cache the mask covers the past too); None: no padding.
        bos_id: token that is never content; None where the tokenizer has none.
    """
    content_BT = torch.ones_like(ids_BT, dtype=torch.bool) if bos_id is None else ids_BT != bos_id
    return content_BT if mask_BT is None else content_BT & mask_BT[:, -ids_BT.shape[1] :].bool()


def _content(kwargs: Mapping[str, Any], args: tuple[Any, ...], bos_id: int | None) -> Tensor:
    """``content_tokens`` of a decoder's call; embeddings in the place of ids are content wherever the mask says so."""
    mask = kwargs.get("attention_mask")
    mask_BT = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    ids = kwargs.get("input_ids", args[0] if args else None)
    if ids is None:
        embeds = kwargs["inputs_embeds"]
        ids, bos_id = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device), None
    return content_tokens(ids, mask_BT, bos_id)


def _remember(cache: Any, memory: dict[str, Any]) -> dict[str, Any]:
    """The memory that ``cache`` carries; ``memory`` from now on where it carries none."""
    kept: dict[str, Any] = cache.__dict__.setdefault(_MEMORY, memory)
    return kept


def _at(layer: int, current: list[Seen]) -> Seen:
    """The pass as the edit of ``layer`` sees it: with a memory of its own."""
    return Seen(current[0].content_BT, current[0].memory.setdefault(str(layer), {}))


def _before(edit: Edit, current: list[Seen]) -> Callable[..., Any]:
    """Pre-hook of the first block that edits its input."""

    def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        hidden_BTD = args[0] if args else kwargs["hidden_states"]
        changed_BTD = edit(hidden_BTD, _at(EMBEDDINGS, current)).to(hidden_BTD.dtype)
        return ((changed_BTD, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed_BTD})

    return before


def _after(layer: int, edit: Edit, current: list[Seen]) -> Callable[..., Any]:
    """Hook of a block that edits its output, be it a tensor or a tuple that starts with it."""

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        hidden_BTD = output[0] if isinstance(output, tuple) else output
        changed_BTD = edit(hidden_BTD, _at(layer, current)).to(hidden_BTD.dtype)
        return (changed_BTD, *output[1:]) if isinstance(output, tuple) else changed_BTD

    return after


def intervene(lm: nn.Module, edits: Mapping[int, Edit], bos_id: int | None = None) -> Handle:
    """Edit the outputs of blocks in every forward pass from now on.

    Args:
        lm: the language model; wrapped by peft or not.
        edits: edit by block (0-based); -1 edits the input of block 0.
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
            memory = _remember(cache, memory)
        current[:] = [Seen(_content(kwargs, args, bos_id), memory)]

    def end(module: nn.Module, args: Any, output: Any) -> None:
        cache = getattr(output, "past_key_values", None)  # a cache that the decoder has made itself
        if cache is not None:
            _remember(cache, current[0].memory)

    blocks, decoder = blocks_of(lm), decoder_of(lm)
    handles = [decoder.register_forward_pre_hook(begin, with_kwargs=True), decoder.register_forward_hook(end)]
    for layer, edit in edits.items():
        if layer == EMBEDDINGS:
            handles.append(blocks[0].register_forward_pre_hook(_before(edit, current), with_kwargs=True))
        else:
            handles.append(blocks[layer].register_forward_hook(_after(layer, edit, current)))
    return Handle(handles)
