"""Changing a block's output while the model runs: noise, patches, steering."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from unlearn.models.capture import EMBEDDINGS, check_layer
from unlearn.models.decoder import blocks_of


@contextmanager
def edited(lm: nn.Module, layer: int, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the context, block ``layer`` gives ``edit`` of its output [B, T, D] to the next one; -1 edits the input of block 0.

    Raises:
        ModelError: the layer is out of range.
    """
    check_layer(lm, layer)
    blocks = blocks_of(lm)

    def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    if layer == EMBEDDINGS:
        handle = blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = blocks[layer].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
