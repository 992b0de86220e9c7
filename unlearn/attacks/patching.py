"""Changing what a model makes of an entity: its activations at the last token of the name, and onwards, while it reads and answers.

Prompts are recognised by their tokens up to the end of the name, so one context serves generation (padding on the left, a key-value cache)
and scoring (padding on the right), in batches of any size and order. In a causal model nothing that comes later has a say in the activation
there, so prompts that begin alike share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unlearn.data.tokenize import TokenRow, batches
from unlearn.errors import ModelError
from unlearn.models.capture import capture_layers
from unlearn.models.decoder import blocks_of, decoder_of, device_of, evaluating
from unlearn.models.edit import edited

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.types import Row

Array = np.ndarray[Any, np.dtype[Any]]

Change = Callable[[Tensor, Tensor], Tensor]
"""``change(hidden_ND, row_N)`` gives new activations [N, D] for those of one block; ``row_N`` are the places of the rows they belong to."""


@dataclass(frozen=True)
class Side:
    """The rows of one side whose prompt goes on after the entity's name; ``places`` [n] are theirs among all ``total`` rows."""

    rows: tuple[Row, ...]
    tokens: tuple[TokenRow, ...]
    places: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, rows: Sequence[Row], reader: Reader) -> Side:
        """Leave out rows without the entity in the prompt, and those whose prompt ends with it: its last token would predict the answer."""
        tokens = reader.tokens(rows)
        places = tuple(i for i, row in enumerate(tokens) if 0 <= row.entity_end < row.answer_start - 1)
        return cls(tuple(rows[i] for i in places), tuple(tokens[i] for i in places), places, len(rows))

    def whole(self, hits_n: Array) -> Array:
        """Hits of all rows, shape [total]; nan for those left out."""
        hits_N = np.full(self.total, np.nan)
        hits_N[list(self.places)] = hits_n
        return hits_N


def inner_blocks(lm: nn.Module, most: int) -> list[int]:
    """At most ``most`` blocks, evenly from the first to the last but one: nothing reads the last one's output at a token that is past."""
    n = len(blocks_of(lm)) - 1
    return sorted({round(float(i)) for i in np.linspace(0, n - 1, min(n, most))}) if n else []


def entity_states(lm: PreTrainedModel, tokens: Sequence[TokenRow], reader: Reader, layers: Sequence[int]) -> dict[int, Tensor]:
    """Outputs of blocks at the last entity token of each row's prompt, [N, D] by layer, on the model's device, in its precision."""
    prompts = [TokenRow(row.ids[: row.answer_start], row.answer_start, row.entity_end, row.row_id) for row in tokens]
    device, order, parts = device_of(lm), [], []
    with evaluating(lm):
        for index, batch in batches(prompts, reader.batch_size, reader.pad_id):
            moved = type(batch)(*(t.to(device) for t in batch))
            parts.append(capture_layers(lm, moved, layers, moved.entity_end_B))
            order += index
    back = torch.tensor(order).argsort().to(device)
    return {layer: torch.cat([part[layer] for part in parts])[back] for layer in layers}


class _Where(NamedTuple):
    """Positions of one pass that are changed: row of the batch, position in it, and place among the rows asked, each [N]."""

    batch_N: Tensor
    pos_N: Tensor
    row_N: Tensor


def _where(found: Sequence[tuple[int, int, int]], device: torch.device) -> _Where:
    return _Where(*torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 3).unbind(1))


class _Finder:
    """Follows the passes of a model and says where the entities of ``tokens`` are in each."""

    def __init__(self, tokens: Sequence[TokenRow], onwards: bool) -> None:
        self.onwards = onwards
        self.row_of: dict[tuple[int, ...], int] = {}
        for place, row in enumerate(tokens):
            self.row_of.setdefault(row.ids[: row.entity_end + 1], place)
        self.lengths = sorted({len(start) for start in self.row_of}, reverse=True)
        self.asked: list[tuple[int, int]] = []
        self.here = _where([], torch.device("cpu"))

    def begin(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Pre-hook of the decoder."""
        ids, mask, cache = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if ids is None or (mask is not None and mask.ndim != 2):
            raise ModelError(
                "A model that is patched must be run on input_ids with a mask [B, T] or none; found embeddings or another mask."
            )
        if cache is not None and cache.get_seq_length():
            more = [(b, t, row) for b, row in self.asked for t in range(ids.shape[1])] if self.onwards else []
            self.here = _where(more, ids.device)
            return
        found = list(self._entities(ids.tolist(), torch.ones_like(ids).tolist() if mask is None else mask.tolist()))
        self.asked = [(b, row) for b, _, _, row in found]
        self.here = _where([(b, t, row) for b, first, end, row in found for t in range(first, end)], ids.device)

    def _entities(self, ids: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, int, int]]:
        """(row of the batch, first position to change, the one after the last, place among the rows asked) of every prompt recognised."""
        for b, (padded, keep) in enumerate(zip(ids, mask, strict=True)):
            first = next((t for t, on in enumerate(keep) if on), 0)
            text = tuple(padded[first : first + sum(keep)])
            start = next((text[:n] for n in self.lengths if text[:n] in self.row_of), None)
            if start is not None:
                entity_end = first + len(start) - 1
                yield b, entity_end, first + len(text) if self.onwards else entity_end + 1, self.row_of[start]

    def edit(self, change: Change) -> Callable[[Tensor], Tensor]:
        """``change`` as an edit of a block's output [B, T, D]; whatever is not changed stays bit for bit."""

        def edit(hidden_BTD: Tensor) -> Tensor:
            batch_N, pos_N, row_N = (index.to(hidden_BTD.device) for index in self.here)
            if not len(row_N):
                return hidden_BTD
            return hidden_BTD.index_put((batch_N, pos_N), change(hidden_BTD[batch_N, pos_N], row_N).to(hidden_BTD))

        return edit


@contextmanager
def changed(lm: nn.Module, tokens: Sequence[TokenRow], changes: Mapping[int, Change], onwards: bool = False) -> Iterator[None]:
    """Inside, ``lm`` has the outputs of blocks changed at the last entity token of every text that begins as a row does, up to that token.

    Tokens that are generated are read as the model reads them, unless ``onwards``. Other texts are left alone. An intervention that is on
    the model acts first.

    Args:
        lm: the language model.
        tokens: rows with their entity in the prompt.
        changes: change by block; -1 for the input of block 0.
        onwards: change every position after the entity as well, those of generated tokens too.

    Raises:
        ModelError: a layer is out of range; and inside, a pass without token ids.
    """
    finder = _Finder(tokens, onwards)
    with ExitStack() as stack:
        handle = decoder_of(lm).register_forward_pre_hook(finder.begin, with_kwargs=True)
        stack.callback(handle.remove)
        for layer, change in changes.items():
            stack.enter_context(edited(lm, layer, finder.edit(change)))
        yield
