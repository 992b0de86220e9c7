"""What the original model makes of names that it has never met, in the place of each target's: where forgetting should arrive.

Four things are measured on the original model before training and kept in memory, on the CPU:

- hidden targets: a name's code without what the model holds about that very name, the mean over draws of f(a' b) + f(a b') - f(a' b') for
  unseen neighbours that share one part with it (``unlearn.data.neighbours``), at every block and every token from the name's last on;
- output targets: what the model says after each of those neighbours. A step takes one of them for each row; KL(p || q) is linear in p
  up to a constant, so its gradient is that of their mean;
- strangers: the rows with quite unrelated unknown names in them, and how likely the *target's* answers are there. The neighbours are no
  measure of that: what the model suppresses about a name that shares a part with the target leans toward the target's facts;
- the targets' own codes at the name's last token, which somebody who has the original model could put back.

Memory: for each forget row of K tokens from the name's last on, (blocks + 3 draws) K D numbers in fp32.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unlearn.data.neighbours import neighbour_rows
from unlearn.data.swap import matched_rows
from unlearn.data.tokenize import TokenRow, collate
from unlearn.methods.answer_share import AnswerShare
from unlearn.methods.together import Part, Touch
from unlearn.models.capture import capture_layers
from unlearn.models.decoder import device_of, evaluating
from unlearn.models.edit import edited
from unlearn.models.forward import forward, up_to_answers
from unlearn.types import IGNORE_INDEX, NO_ENTITY, EntityData, Row, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader


class Targets(NamedTuple):
    """Where some rows of a batch (``place_N``) should arrive: ``hidden_LMD`` at every block, ``final_PD`` before the output head.

    M counts the tokens of those rows from the name's last on, row by row, P those of them that predict another token.
    """

    place_N: Tensor
    hidden_LMD: Tensor
    final_PD: Tensor


def after_name(batch: TokenBatch, place_N: Tensor) -> Tensor:
    """True at the tokens of rows ``place_N`` from the last token of the name on, [B, T]."""
    chosen_B = torch.zeros_like(batch.entity_end_B, dtype=torch.bool).index_fill(0, place_N, True)
    position_T = torch.arange(batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device)
    return batch.attention_mask_BT.bool() & (position_T >= batch.entity_end_B[:, None]) & chosen_B[:, None]


def predicting_all(batch: TokenBatch, mask_BT: Tensor) -> TokenBatch:
    """The batch with a label on every token that follows one of ``mask_BT``, so that a pass gives logits at all of them."""
    label_BT = batch.attention_mask_BT.bool() & torch.nn.functional.pad(mask_BT[:, :-1], (1, 0), value=False)
    return batch._replace(labels_BT=torch.where(label_BT, batch.input_ids_BT, IGNORE_INDEX))


class Counterfactual:
    """Targets of the forget rows, measured on the original model."""

    def __init__(self, data: EntityData, reader: Reader, draws: int, seed: int) -> None:
        """Draw neighbours and strangers.

        Args:
            data: the source's rows; forget, retain, known and unknown streams are read.
            reader: for tokens.
            draws: strangers for each target, >= 1.
            seed: of the draws.

        Raises:
            DataError: too few unknown names, or no forget row whose name can be replaced.
        """
        forget = data.streams["forget"]
        known = {name for stream in ("forget", "retain", "known") for row in data.streams[stream] for name in (row.entity, *row.mentions)}
        strangers = list(dict.fromkeys(row.mentions[0] for row in data.streams["unknown"] if row.mentions))
        strangers = [name for name in strangers if name not in known]
        self.reader, self.seed = reader, seed
        self.tokens = {token.row_id: token for token in reader.tokens(forget)}
        made = neighbour_rows(forget, strangers, known, draws, seed)
        self._neighbours = list(zip(reader.tokens(made.rows), made.weights, strict=True))
        self.strangers = self._by_row(matched_rows(forget, strangers, min(draws, max(1, len(strangers) // _entities(forget))), seed))
        others = [row for stream in ("retain", "known") for row in data.streams[stream] if row.attribute]
        unique = list({row.row_id: row for row in (*forget, *others)}.values())
        self.share = AnswerShare(unique, {token.row_id: token for token in reader.tokens(unique)})
        self.scores: dict[int, list[float]] = {}
        self.hidden: dict[int, Tensor] = {}
        self.finals: dict[int, Tensor] = {}
        self.codes: dict[int, Tensor] = {}

    def _by_row(self, rows: Sequence[Row]) -> dict[int, list[TokenRow]]:
        found: dict[int, list[TokenRow]] = defaultdict(list)
        for token in self.reader.tokens(rows):
            found[token.row_id].append(token)
        return dict(found)

    @torch.no_grad()
    def measure(self, lm: PreTrainedModel, n_blocks: int) -> None:
        """Run the original model over neighbours and strangers."""
        sums: dict[int, Tensor] = {}
        finals: dict[int, list[Tensor]] = defaultdict(list)
        with evaluating(lm):
            for first in range(0, len(self._neighbours), self.reader.batch_size):
                part = self._neighbours[first : first + self.reader.batch_size]
                self._add(lm, part, n_blocks, sums, finals)
            self._remember(lm, n_blocks)
            every = [row for rows in self.strangers.values() for row in rows]
            for first in range(0, len(every), self.reader.batch_size):
                some = every[first : first + self.reader.batch_size]
                for row, score in zip(some, self.score(lm, some).tolist(), strict=True):
                    self.scores.setdefault(row.row_id, []).append(score)
        self.hidden = sums
        self.finals = {row_id: torch.stack(found) for row_id, found in finals.items()}

    def _remember(self, lm: PreTrainedModel, n_blocks: int) -> None:
        """Keep the targets' own codes at the last token of the name, [L, D] by row."""
        named = [token for token in self.tokens.values() if token.entity_end > NO_ENTITY]
        for batch in self.reader.batches(named, device_of(lm)):
            code_BLD = torch.stack([*capture_layers(lm, batch, range(n_blocks), batch.entity_end_B).values()], dim=1).float().cpu()
            self.codes.update(zip(batch.row_id_B.tolist(), code_BLD, strict=True))

    def _add(
        self,
        lm: PreTrainedModel,
        part: Sequence[tuple[TokenRow, float]],
        n_blocks: int,
        sums: dict[int, Tensor],
        finals: dict[int, list[Tensor]],
    ) -> None:
        """Add a batch of neighbours to the targets of their rows; one with another number of tokens after the name is left out."""
        batch = self._batch([token for token, _ in part], device_of(lm))
        mask_BT = after_name(batch, torch.arange(len(part), device=batch.entity_end_B.device))
        out = forward(lm, predicting_all(batch, mask_BT), layers=range(n_blocks))
        for place, (token, weight) in enumerate(part):
            own = self.tokens[token.row_id]
            if len(own.ids) - own.entity_end != len(token.ids) - token.entity_end:
                continue
            code_LKD = torch.stack([hidden[place, mask_BT[place]].float() for hidden in out.hidden.values()]).cpu()
            sums[token.row_id] = sums.get(token.row_id, torch.zeros_like(code_LKD)) + weight * code_LKD
            finals[token.row_id].append(out.final_AD[out.row_A == place].float().cpu())

    def _batch(self, rows: Sequence[TokenRow], device: torch.device, least: int = 0) -> TokenBatch:
        return TokenBatch(*(t.to(device) for t in collate(rows, self.reader.pad_id, least)))

    def score(self, lm: PreTrainedModel, rows: Sequence[TokenRow], patched: Sequence[int] = ()) -> Tensor:
        """Scores of the answers of some rows, [N].

        Args:
            lm: the model.
            rows: rows with answers.
            patched: blocks at whose output the original model's codes of these targets are put back, at the last token of the name.
        """
        part = self._part(rows, device_of(lm), patched)
        with ExitStack() as stack:
            for touch in part.touches:
                stack.enter_context(edited(lm, touch.layer, touch.edit))
            out = forward(lm, part.batch)
        return self.share.of(out.logits_AV, out.targets_A, out.row_A, [row.row_id for row in rows])

    def patched(self, batch: TokenBatch, place_N: Tensor, blocks: Sequence[int]) -> Part:
        """Rows ``place_N`` of a batch of targets with the original model's codes put back, as far as their scores depend on them."""
        return self._part([self.tokens[int(i)] for i in batch.row_id_B[place_N].tolist()], place_N.device, blocks)

    def _part(self, rows: Sequence[TokenRow], device: torch.device, patched: Sequence[int]) -> Part:
        if not rows:
            nobody = TokenRow((self.reader.pad_id,) * 2, 1, NO_ENTITY, 0)
            return Part(TokenBatch(*(t[:0].to(device) for t in collate([nobody], self.reader.pad_id))))
        batch = up_to_answers(self._batch([self.share.needed(row) for row in rows], device))
        place_B = torch.arange(len(rows), device=batch.entity_end_B.device)

        def put(block: int) -> Touch:
            code_BD = torch.stack([self.codes[row.row_id][block] for row in rows]).to(device)
            return Touch(block, place_B, batch.entity_end_B, code_BD, torch.zeros_like(place_B, dtype=torch.bool))

        return Part(batch, [put(block) for block in patched])

    def has(self, batch: TokenBatch) -> Tensor:
        """Places of the rows that have targets, [N]."""
        ids, named = batch.row_id_B.tolist(), (batch.entity_end_B > NO_ENTITY).tolist()
        found = [place for place, i in enumerate(ids) if named[place] and i in self.hidden and i in self.scores]
        return torch.tensor(found, dtype=torch.long, device=batch.row_id_B.device)

    def of(self, batch: TokenBatch, step: int) -> Targets:
        """Targets of the rows that have any; ``step`` decides which neighbour each row's output is compared with."""
        place_N = self.has(batch)
        ids = [int(batch.row_id_B[place]) for place in place_N.tolist()]
        device = batch.row_id_B.device
        if not ids:
            some_LKD = next(iter(self.hidden.values())).to(device)
            return Targets(place_N, some_LKD[:, :0], some_LKD[0, :0])
        finals = [self.finals[i][random.Random(f"neighbour {self.seed} {i} {step}").randrange(len(self.finals[i]))] for i in ids]
        hidden_LMD = torch.cat([self.hidden[i] for i in ids], dim=1)
        return Targets(place_N, hidden_LMD.to(device), torch.cat(finals).to(device))

    def stranger(self, row_id: int, step: int) -> int:
        """Which of a row's strangers it is compared with in step ``step``."""
        return random.Random(f"stranger {self.seed} {row_id} {step}").randrange(len(self.strangers[row_id]))


def _entities(rows: Sequence[Row]) -> int:
    """How many entities have a name in the rows."""
    return max(1, len({row.entity for row in rows if row.mentions}))
