"""Several batches in no more passes than there are batches, with less padding: rows of like length share a pass.

What comes back is what a pass of each batch would give (to rounding), gradients included. Rows that are padded to the longest of a mixed
batch are a third of the work of a pass, and batches of their own for few rows cost more than their rows do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unlearn.methods.base import concatenate
from unlearn.models.edit import edited
from unlearn.models.forward import Forward, forward
from unlearn.types import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Touch(NamedTuple):
    """A change of block ``layer``'s output at one token of some rows: position ``pos_N`` of row ``row_N`` (ascending) gets ``value_ND``, or
    has it added where ``added_N``."""

    layer: int
    row_N: Tensor
    pos_N: Tensor
    value_ND: Tensor
    added_N: Tensor

    def within(self, row_M: Tensor, first: int = 0) -> Touch:
        """The same where the batch is made of rows ``row_M`` (ascending) of another in which this one's begin at ``first``."""
        at_N = torch.searchsorted(row_M, self.row_N + first)
        keep = torch.isin(self.row_N + first, row_M)
        return Touch(self.layer, at_N[keep], self.pos_N[keep], self.value_ND[keep], self.added_N[keep])

    def edit(self, hidden_BTD: Tensor) -> Tensor:
        """The block's output [B, T, D], changed."""
        own_ND = hidden_BTD[self.row_N, self.pos_N]
        new_ND = torch.where(self.added_N[:, None], own_ND + self.value_ND, self.value_ND).to(hidden_BTD.dtype)
        return hidden_BTD.index_put((self.row_N, self.pos_N), new_ND)


class Part(NamedTuple):
    """A batch with what is changed while it is read."""

    batch: TokenBatch
    touches: Sequence[Touch] = ()


def by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of rows, in at most ``most`` groups with as little padding as possible, each ascending; groups of longer rows come first.

    >>> by_length([3, 9, 3, 8], 2), by_length([3, 9, 3, 8], 1)
    ([[1, 3], [0, 2]], [[0, 1, 2, 3]])

    Args:
        lengths: tokens of each row, of at least one.
        most: most groups, >= 1.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    cuts = [i for i in range(len(order)) if i == 0 or lengths[order[i]] != lengths[order[i - 1]]] + [len(order)]
    best: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {(0, 0): (0, ())}  # (groups, rows) -> (tokens, ends)
    for n, (end, start) in itertools.product(range(1, most + 1), ((e, s) for e, s in itertools.combinations(cuts[::-1], 2))):
        if (n - 1, start) in best:
            tokens, ends = best[n - 1, start]
            found = (tokens + (end - start) * lengths[order[start]], (*ends, end))
            best[n, end] = min(best.get((n, end), found), found)
    ends = min((best[n, len(order)] for n in range(most + 1) if (n, len(order)) in best), key=lambda found: (found[0], len(found[1])))[1]
    return [sorted(order[a:b]) for a, b in itertools.pairwise((0, *ends))]


def forward_together(lm: PreTrainedModel, parts: Sequence[Part], layers: Sequence[int]) -> list[Forward]:
    """``forward`` of each part, in at most as many passes.

    Args:
        lm: the language model.
        parts: batches, some of which may be empty; at least one row in all.
        layers: blocks whose output is wanted.
    """
    whole = concatenate([part.batch for part in parts])
    counts = [len(part.batch.row_id_B) for part in parts]
    firsts = [0, *itertools.accumulate(counts)]
    device, width = whole.input_ids_BT.device, whole.input_ids_BT.shape[1]
    lengths = whole.attention_mask_BT.sum(1).tolist()
    rows, outs = [], []
    for group in by_length(lengths, len(parts)):
        row_M, longest = torch.tensor(group, device=device), max(lengths[i] for i in group)
        own = TokenBatch(*(t[row_M, :longest] if t.ndim > 1 else t[row_M] for t in whole))
        own = own._replace(labels_BT=whole.labels_BT[row_M, : longest + 1])  # a row's last label may stand behind what is read of it
        touches = [touch.within(row_M, first) for part, first in zip(parts, firsts, strict=False) for touch in part.touches]
        with ExitStack() as stack:
            for touch in touches:
                stack.enter_context(edited(lm, touch.layer, touch.edit))
            outs.append(forward(lm, own, layers=layers))
        rows.append(row_M)
    order_B = torch.cat(rows).argsort()
    row_A = torch.cat([row_M[out.row_A] for row_M, out in zip(rows, outs, strict=True)])
    order_A = row_A.argsort(stable=True)
    ends = torch.searchsorted(row_A[order_A].contiguous(), torch.tensor(firsts, device=device)).tolist()

    def answers(of: Callable[[Forward], Tensor]) -> list[Tensor]:
        found = torch.cat([of(out) for out in outs]).index_select(0, order_A)
        return [found[a:b] for a, b in itertools.pairwise(ends)]

    def blocks(n: int) -> list[Tensor]:
        padded = [torch.nn.functional.pad(out.hidden[n], (0, 0, 0, width - out.hidden[n].shape[1])) for out in outs]
        return list(torch.cat(padded).index_select(0, order_B).split(counts))

    hidden = {n: blocks(n) for n in layers}
    made = zip(answers(lambda out: out.logits_AV), answers(lambda out: out.targets_A), answers(lambda out: out.final_AD), strict=True)
    places = [row_A[order_A][a:b] - first for (a, b), first in zip(itertools.pairwise(ends), firsts, strict=False)]
    return [
        Forward(logits, targets, places[i], {n: hidden[n][i][:, : parts[i].batch.input_ids_BT.shape[1]] for n in layers}, final)
        for i, (logits, targets, final) in enumerate(made)
    ]
