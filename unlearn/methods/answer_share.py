"""How likely a model finds the true answer, in a form that can be compared between entities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from unlearn.data.tokenize import TokenRow
from unlearn.functional.erasure import log_share
from unlearn.functional.tokens import row_mean, token_nll

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.types import Row


class AnswerShare:
    """Scores of true answers; higher is likelier.

    A row whose attribute has several values scores the first token of its answer among the first tokens of all of them (``log_share``: 0 is
    chance, log n certainty), so that it does not matter whether the model would rather refuse. Where they cannot be told apart by their
    first token, or there is no attribute, the score is the mean log-likelihood of the answer's tokens.
    """

    def __init__(self, rows: Sequence[Row], tokens: Mapping[int, TokenRow]) -> None:
        """Collect the values of every attribute.

        Args:
            rows: rows of known entities, the targets' among them.
            tokens: their tokens by row id.
        """
        values: dict[tuple[str, str], set[int]] = defaultdict(set)
        for row in (row for row in rows if row.attribute):
            values[row.attribute, row.kind].add(_first(tokens[row.row_id]))
        found = {row.row_id: values[row.attribute, row.kind] for row in rows if row.attribute}
        self.choices = {row_id: sorted(ids) for row_id, ids in found.items() if len(ids) > 1}

    def needed(self, row: TokenRow) -> TokenRow:
        """The row as far as its score depends on it: up to the first token of its answer where that competes with others."""
        end = row.answer_start + 1
        return replace(row, ids=row.ids[:end]) if row.row_id in self.choices and row.entity_end < end else row

    def of(self, logits_AV: Tensor, targets_A: Tensor, row_A: Tensor, row_ids: Sequence[int]) -> Tensor:
        """Scores [B], float32 at least.

        Args:
            logits_AV: logits at the answer positions of a batch, row by row, at least one for each row.
            targets_A: answer tokens.
            row_A: places of their rows in the batch, ascending.
            row_ids: ids of the rows [B] that the answers belong to.
        """
        n = len(row_ids)
        score_B = -row_mean(token_nll(logits_AV, targets_A), row_A, n)
        place_N = [place for place, i in enumerate(row_ids) if i in self.choices]
        if not place_N:
            return score_B
        first_N = torch.searchsorted(row_A, torch.tensor(place_N, device=row_A.device))
        choices_NV = torch.zeros(len(place_N), logits_AV.shape[-1], dtype=torch.bool, device=logits_AV.device)
        for n_th, place in enumerate(place_N):
            choices_NV[n_th, self.choices[row_ids[place]]] = True
        share_N = log_share(logits_AV[first_N], targets_A[first_N], choices_NV)
        return score_B.index_put((torch.tensor(place_N, device=score_B.device),), share_N)


def _first(row: TokenRow) -> int:
    """First token of a row's answer."""
    return row.ids[row.answer_start]
