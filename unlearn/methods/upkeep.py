"""Keeping what no listed row covers: names that the model lists itself, and codes that no entity has.

Both are compared with the original model on the spot, which computes with the trained weights as they were (a copy of them is kept; the
rest is shared), so neither needs stored references.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unlearn.data.tokenize import TokenRow, collate
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.erasure import relative_change, virtual_codes
from unlearn.functional.ranks import masked_mean, own_share
from unlearn.methods.counterfactual import predicting_all
from unlearn.methods.together import Part, Touch
from unlearn.methods.undo import swapped, trained_weights
from unlearn.models.capture import EMBEDDINGS, capture_layers
from unlearn.models.decoder import device_of, evaluating
from unlearn.models.edit import edited
from unlearn.models.forward import Forward, forward
from unlearn.types import NO_ENTITY, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STRETCHES = (0.7, 1.0, 1.3)
"""How far virtual codes are spread, in units of the spread of known ones."""


@dataclass(frozen=True)
class Changes:
    """How far a group of rows has moved: divergence of the next-token distributions, relative change of the hidden states; scalars."""

    kl: Tensor
    hidden: Tensor


NO_CHANGES = Changes(torch.zeros(()), torch.zeros(()))
"""Of no rows."""


class Drawn(NamedTuple):
    """What is read in a step, what the original model made of it, and which of its rows are virtual entities."""

    part: Part
    before: Forward
    virtual_B: Tensor

    def changes(self, after: Forward) -> tuple[Changes, Changes]:
        """Changes of the replayed rows and of the virtual entities, the trained model having read ``part``."""
        mask_BT = self.part.batch.attention_mask_BT.bool().clone()
        mask_BT[:, 0] = False
        return _compare(self.before, after, mask_BT, ~self.virtual_B), _compare(self.before, after, mask_BT, self.virtual_B)


class Upkeep:
    """Rows that are kept where the original model has them.

    Attributes:
        replayed: rows about names that the model listed.
        strangers: rows that name unknown entities, in whose place virtual ones are put.
        known: codes of known entities at the last token of the name, [N, D] at every block, -1 for the embeddings.
        original: the trained weights as they were.
    """

    def __init__(self, replayed: Sequence[TokenRow], strangers: Sequence[TokenRow], pad_id: int, n_blocks: int, seed: int) -> None:
        """Take the rows; ``measure`` must come before ``drawn``."""
        self.replayed, self.strangers = tuple(replayed), tuple(row for row in strangers if row.entity_end > NO_ENTITY)
        self.pad_id, self.n_blocks, self.seed = pad_id, n_blocks, seed
        self.known: dict[int, Tensor] = {}
        self.original: dict[str, Tensor] = {}

    def measure(self, lm: PreTrainedModel, known: Sequence[TokenBatch]) -> None:
        """Keep the trained weights, and the codes of the known entities that batches name."""
        self.original = {name: weight.detach().clone() for name, weight in trained_weights(lm).items()}
        layers = range(EMBEDDINGS, self.n_blocks)
        parts: dict[int, list[Tensor]] = {n: [] for n in layers}
        with evaluating(lm):
            for batch in known:
                keep = batch.entity_end_B > NO_ENTITY
                for n, code_BD in capture_layers(lm, batch, layers, batch.entity_end_B.clamp(min=0)).items():
                    parts[n].append(code_BD[keep].float())
        self.known = {n: torch.cat(found) for n, found in parts.items()}

    def drawn(self, lm: PreTrainedModel, step: int, replay: int, virtual: int, noise: float) -> Drawn | None:
        """Replayed rows and virtual entities drawn for a step, with what the original model makes of them; None where there are none.

        The entity's token is shaken in the first group (in the trained model alone), and replaced in the second (in both), at the output
        of a block that is drawn as well.

        Args:
            lm: the model in training.
            step: number of the step.
            replay: replayed rows of all processes together, >= 0; none where the model listed nobody.
            virtual: virtual entities of all processes together, >= 0.
            noise: the first group is shaken by up to this many standard deviations of the known codes.
        """
        rng = random.Random(f"upkeep {self.seed} {step}")
        rows = [rng.choice(self.replayed) for _ in range(replay if self.replayed else 0)]
        n_replayed = len(rows)
        rows += [rng.choice(self.strangers) for _ in range(virtual if self.strangers else 0)]
        if not rows:
            return None
        device, layer = device_of(lm), rng.randrange(EMBEDDINGS, self.n_blocks - 1)
        own = list(own_share(len(rows)))
        batch = TokenBatch(*(t.to(device) for t in self._collated([rows[i] for i in own], max(len(row.ids) for row in rows))))
        place_B = torch.arange(len(own), device=batch.entity_end_B.device)
        virtual_B = torch.tensor([i >= n_replayed for i in own], dtype=torch.bool, device=place_B.device)
        code_BD, shake_BD = self._values(len(rows), own, layer, rng, noise)
        self.original = {name: weight.to(device) for name, weight in self.original.items()}
        wide = predicting_all(batch, batch.attention_mask_BT.bool())
        end_B = batch.entity_end_B.clamp(min=0)
        put = Touch(layer, place_B[virtual_B], end_B[virtual_B], code_BD[virtual_B], torch.zeros_like(virtual_B[virtual_B]))
        both = Touch(layer, place_B, end_B, torch.where(virtual_B[:, None], code_BD, shake_BD), ~virtual_B)
        touched = layer != EMBEDDINGS  # there a name stays what it is
        with torch.no_grad(), swapped(lm, self.original), edited(lm, layer, put.edit) if touched else nullcontext():
            before = forward(lm, wide, layers=range(self.n_blocks))
        return Drawn(Part(wide, (both,) if touched else ()), before, virtual_B)

    def shaken(self, batch: TokenBatch, step: int, noise: float) -> tuple[Touch, ...]:
        """How the entity's token of a batch is shaken at the output of a block drawn for the step, by up to ``noise`` deviations of the
        known codes; what a row gets depends on its id, not on its place. Nothing without noise."""
        if not noise:
            return ()
        rng = random.Random(f"noise {self.seed} {step}")
        layer, strength = rng.randrange(max(1, self.n_blocks - 1)), noise * rng.random()
        named_N = (batch.entity_end_B > NO_ENTITY).nonzero()[:, 0]
        spread_D = strength * self.known[layer].std(0)
        shift_ND = spread_D * row_noise(batch.row_id_B[named_N].tolist(), len(spread_D), (self.seed, step)).to(spread_D)
        return (Touch(layer, named_N, batch.entity_end_B[named_N], shift_ND, torch.ones_like(named_N, dtype=torch.bool)),)

    def _collated(self, rows: Sequence[TokenRow], width: int) -> TokenBatch:
        if rows:
            return collate(rows, self.pad_id, width)
        return TokenBatch(*(t[:0] for t in collate([TokenRow((self.pad_id,) * width, 1, NO_ENTITY, 0)], self.pad_id)))

    def _values(self, n: int, own: Sequence[int], layer: int, rng: random.Random, noise: float) -> tuple[Tensor, Tensor]:
        """Virtual codes and noise at a block for this process's rows of ``n``, [B, D] each."""
        known_ND = self.known[layer]
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        weights_MN = torch.randn(n, len(known_ND), generator=generator)[own].to(known_ND) / max(1, len(known_ND)) ** 0.5
        noise_MD = torch.randn(n, known_ND.shape[1], generator=generator)[own].to(known_ND)
        stretch, strength = rng.choice(STRETCHES), noise * rng.random()
        return virtual_codes(known_ND, weights_MN, stretch), strength * known_ND.std(0) * noise_MD


def row_noise(row_ids: Sequence[int], width: int, place: tuple[int, ...]) -> Tensor:
    """Standard normal noise [N, width] that depends on each row's id and on ``place`` (seed, step), not on the row's neighbours.

    >>> torch.equal(row_noise([3, 5], 2, (0, 1))[1:], row_noise([5], 2, (0, 1)))
    True
    """
    drawn = [torch.randn(width, generator=torch.Generator().manual_seed(hash((*place, i)) % 2**63)) for i in row_ids]
    return torch.stack(drawn) if drawn else torch.zeros(0, width)


def _compare(before: Forward, after: Forward, mask_BT: Tensor, chosen_B: Tensor) -> Changes:
    """Changes of the rows ``chosen_B``."""
    kl = masked_mean(kl_divergence(before.logits_AV, after.logits_AV), chosen_B[before.row_A])
    mask_BT = mask_BT & chosen_B[:, None]
    moved = [relative_change(after.hidden[n][mask_BT], before.hidden[n][mask_BT]) for n in before.hidden]
    return Changes(kl, torch.stack(moved).mean())
