"""Block outputs of a language model without running what comes after them.

"Layer L" is the output of block L (0-based), ``hidden_states[L + 1]`` in Hugging Face's terms and ``blocks.L.hook_resid_post`` in
TransformerLens's. The last one is taken before the final norm, which ``hidden_states[-1]`` is not. Layer -1 is the input of block 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from unlearn.errors import ModelError
from unlearn.functional.tokens import gather_positions
from unlearn.models.decoder import block_list_name, blocks_of, decoder_of
from unlearn.types import TokenBatch

EMBEDDINGS = -1
"""Layer number of the input of block 0."""


def check_layer(lm: nn.Module, layer: int, what: str = "layer") -> None:
    """Raise ``ModelError`` unless ``layer`` is -1 (embeddings) or the number of a block."""
    last = len(blocks_of(lm)) - 1
    if not EMBEDDINGS <= layer <= last:
        raise ModelError(f"{what} must be a block of the model, 0 to {last} (-1 for the embeddings); found {layer}.")


def _first(output: Any) -> Tensor:
    """Blocks return a tensor (transformers 5) or a tuple that starts with it (older models and remote code)."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def tapped(lm: nn.Module, layers: Sequence[int], keep: Callable[[Tensor], Tensor] | None = None) -> Iterator[dict[int, Tensor]]:
    """Fill the yielded dict with the outputs of ``layers`` while the model runs inside the context.

    Args:
        lm: the language model.
        layers: block numbers, or -1 for the embeddings.
        keep: what to store of an output [B, T, D]; None stores it whole. It runs at once, so that the rest can be freed.

    Raises:
        ModelError: a layer is out of range.
    """
    blocks = blocks_of(lm)
    found: dict[int, Tensor] = {}

    def store(layer: int, hidden_BTD: Tensor) -> None:
        found[layer] = hidden_BTD if keep is None else keep(hidden_BTD)

    handles = []
    try:
        for layer in dict.fromkeys(layers):
            check_layer(lm, layer)
            if layer == EMBEDDINGS:

                def before(module: nn.Module, args: Any, kwargs: Any) -> None:
                    store(EMBEDDINGS, args[0] if args else kwargs["hidden_states"])

                handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
                continue

            def after(module: nn.Module, args: Any, output: Any, layer: int = layer) -> None:
                store(layer, _first(output))

            handles.append(blocks[layer].register_forward_hook(after))
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def truncated(lm: nn.Module, depth: int) -> Iterator[nn.Module]:
    """Yield the decoder with only its first ``depth`` blocks in place; all of them are back afterwards."""
    decoder = decoder_of(lm)
    name = block_list_name(decoder)
    blocks: nn.ModuleList = getattr(decoder, name)
    if depth < len(blocks):
        setattr(decoder, name, nn.ModuleList(list(blocks)[:depth]))
    try:
        yield decoder
    finally:
        setattr(decoder, name, blocks)


def capture_layers(lm: nn.Module, batch: TokenBatch, layers: Sequence[int], positions_B: Tensor | None = None) -> dict[int, Tensor]:
    """Outputs of several blocks in one pass that stops after the highest of them.

    No block above it runs, and no output head. Blocks below the lowest trainable weight keep no graph. Works with
    gradient checkpointing and with peft adapters.

    Args:
        lm: the language model.
        batch: tokens, padded on the right.
        layers: block numbers (0-based), or -1 for the input of block 0; at least one.
        positions_B: one position per row; None keeps all.

    Returns:
        ``{layer: [B, D]}``, or ``{layer: [B, T, D]}`` without positions, in the model's dtype.

    Raises:
        ModelError: a layer is out of range.
        DataError: a position is negative (``NO_ENTITY``) or past the end.
    """
    if not layers:
        return {}
    keep = None if positions_B is None else lambda hidden_BTD: gather_positions(hidden_BTD, positions_B)
    with tapped(lm, layers, keep) as found, truncated(lm, max(*layers, 0, 0) + 1) as decoder:
        decoder(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    return {layer: found[layer] for layer in layers}


def capture(lm: nn.Module, batch: TokenBatch, layer: int, positions_B: Tensor | None = None) -> Tensor:
    """Output of block ``layer`` (resid_post): [B, D] at ``positions_B``, or [B, T, D]; see ``capture_layers``."""
    return capture_layers(lm, batch, (layer,), positions_B)[layer]
