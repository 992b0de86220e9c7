"""What linear probes could read off the targets' activations: no more than off those of names never met.

A probe that learns from people who are kept what an activation says about an attribute (``unlearn.attacks.probe``) is at its best where
their activations stay where they were, as they should. So the probes of the original model are known before training: ridge classifiers of
each attribute's values at every block, at the last token of the name and at the token that predicts the answer. The term asks that the
targets' true values stand out in their scores as little as they do for unknown names in the same sentences, from both sides.

Memory: for each attribute of V values, 2 blocks D V numbers; for each forget question, 2 draws blocks numbers. All fp32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn.errors import DataError
from unlearn.functional.erasure import quantile_distance, standing
from unlearn.functional.ranks import SharedRows
from unlearn.functional.ridge import fit_readout
from unlearn.functional.text import normalise_answer
from unlearn.functional.tokens import upcast
from unlearn.latents.banks import POSITIONS, position_index
from unlearn.models.decoder import device_of, evaluating
from unlearn.models.forward import forward
from unlearn.types import NO_ENTITY, Row, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.data.tokenize import TokenRow

PENALTY = 100.0
"""Ridge penalty on standardised activations, as that of the attack."""


class Readouts:
    """Probes of the original model, for A attributes of V values at most, at K places: positions times blocks.

    Attributes:
        values: classes of each attribute, by normalised answer.
        places: (attribute, class) of the forget questions whose value has a class, as numbers, by row id.
        scores: standings of a forget question's value in its strangers' activations, a list of [K] by row id.
    """

    def __init__(self, forget: Sequence[Row], kept: Sequence[Row], n_blocks: int) -> None:
        """Find the classes; ``measure`` must come before ``distance``.

        Args:
            forget: rows of the targets; their questions are looked at.
            kept: rows of people who are kept, from whose questions the probes learn.
            n_blocks: decoder blocks of the model.

        Raises:
            DataError: no forget question has a value that people who are kept have as well.
        """
        self.rows = [row for row in {row.row_id: row for row in kept}.values() if row.kind == "qa" and row.attribute and row.mentions]
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for row in self.rows:
            found[row.attribute][normalise_answer(row.answer)] = None
        self.values = {a: {v: i for i, v in enumerate(values)} for a, values in found.items() if len(values) > 1}
        self.numbers = {attribute: i for i, attribute in enumerate(self.values)}
        self.places = self._placed(forget)
        if not self.places:
            raise DataError("method.readout_weight must be 0 where no attribute has several values, a target's among them; found none.")
        self.keys = [(position, n) for position in POSITIONS for n in range(n_blocks)]
        self.n_blocks, self.scores = n_blocks, dict[int, list[Tensor]]()
        self.maps: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.has_AV = torch.zeros(0, 0, dtype=torch.bool)

    def _placed(self, rows: Sequence[Row]) -> dict[int, tuple[int, int]]:
        named = [row for row in rows if row.kind == "qa" and row.mentions]
        return {
            row.row_id: (self.numbers[row.attribute], self.values[row.attribute][normalise_answer(row.answer)])
            for row in named
            if normalise_answer(row.answer) in self.values.get(row.attribute, {})
        }

    @torch.no_grad()
    def measure(self, lm: PreTrainedModel, strangers: Mapping[int, Sequence[TokenRow]], reader: Reader) -> None:
        """Fit the probes on the original model, and look through them at unknown names in the targets' sentences (by row id)."""
        with evaluating(lm):
            self._fit(lm, reader)
            self.has_AV = self.has_AV.to(device_of(lm))
            for batch in reader.batches([row for i in self.places for row in strangers.get(i, ())], device_of(lm)):
                place_N = (batch.entity_end_B > NO_ENTITY).nonzero()[:, 0]
                hidden = forward(lm, batch, layers=range(self.n_blocks)).hidden
                for place, z_K in zip(place_N.tolist(), self.standings(hidden, batch, place_N), strict=True):
                    self.scores.setdefault(int(batch.row_id_B[place]), []).append(z_K)

    def _fit(self, lm: PreTrainedModel, reader: Reader) -> None:
        known, parts, ids = self._placed(self.rows), defaultdict[tuple[str, int], list[Tensor]](list), list[int]()
        for batch in reader.batches([row for row in self.rows if row.row_id in known], device_of(lm)):
            place_N = torch.arange(len(batch.row_id_B), device=batch.row_id_B.device)
            hidden = forward(lm, batch, layers=range(self.n_blocks)).hidden
            ids += batch.row_id_B.tolist()
            for key in self.keys:
                parts[key].append(_at(hidden, batch, place_N, key))
        most = max((len(values) for values in self.values.values()), default=0)
        self.has_AV = torch.tensor([[v < len(values) for v in range(most)] for values in self.values.values()], dtype=torch.bool)
        own = [[i for i, row_id in enumerate(ids) if known[row_id][0] == a] for a in self.numbers.values()]
        classes = [torch.tensor([known[ids[i]][1] for i in places], device=device_of(lm)) for places in own]
        for key, found in parts.items():
            x_ND = torch.cat(found)
            made = [fit_readout(x_ND[places], class_N, most, PENALTY) for places, class_N in zip(own, classes, strict=True)]
            self.maps[key] = torch.stack([each.weight_DV for each in made]), torch.stack([each.bias_V for each in made])

    def standings(self, hidden: Mapping[int, Tensor], batch: TokenBatch, place_N: Tensor) -> Tensor:
        """``standing`` of the true values of rows ``place_N``, [N, K].

        Args:
            hidden: block outputs [B, T, D] by block.
            batch: forget questions, or the same about strangers.
            place_N: rows of it that have a value.
        """
        numbers = [self.places[int(i)] for i in batch.row_id_B[place_N].tolist()]
        attribute_N, class_N = torch.tensor(numbers, dtype=torch.long, device=place_N.device).reshape(-1, 2).unbind(1)
        found = []
        for key in self.keys:
            weight_ADV, bias_AV = self.maps[key]
            score_NV = (_at(hidden, batch, place_N, key)[:, None] @ weight_ADV[attribute_N])[:, 0] + bias_AV[attribute_N]
            found.append(standing(score_NV, class_N, self.has_AV[attribute_N]))
        return torch.stack(found, dim=1)

    def distance(self, hidden: Mapping[int, Tensor], batch: TokenBatch, draw: Callable[[int], int]) -> Tensor:
        """Mean over places of the distance between the targets' standings and their strangers', a scalar >= 0; 0 without such rows.

        Args:
            hidden: block outputs [B, T, D] by block.
            batch: forget rows.
            draw: which of its strangers a row is compared with, by row id.
        """
        ids, named = batch.row_id_B.tolist(), (batch.entity_end_B > NO_ENTITY).tolist()
        chosen = [place for place, i in enumerate(ids) if named[place] and i in self.scores]
        place_N = torch.tensor(chosen, dtype=torch.long, device=batch.row_id_B.device)
        rows, z_NK = SharedRows(place_N), self.standings(hidden, batch, place_N)
        wanted = [self.scores[ids[place]][draw(ids[place]) % len(self.scores[ids[place]])] for place in chosen]
        wanted_MK = rows.all(torch.stack(wanted) if wanted else z_NK.detach())
        z_MK = rows.all(z_NK)
        return torch.stack([quantile_distance(z_MK[:, k], wanted_MK[:, k]) for k in range(len(self.keys))]).mean()


def _at(hidden: Mapping[int, Tensor], batch: TokenBatch, place_N: Tensor, key: tuple[str, int]) -> Tensor:
    """Output of a block at a position of rows ``place_N``, [N, D], float32 at least."""
    position, n = key
    return upcast(hidden[n][place_N, position_index(batch, position)[place_N]])
