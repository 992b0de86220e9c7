"""Other answers to the same prompts: refusals, plausible wrong answers, anything that a row's own answer is set against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unlearn.data.reader import Reader
from unlearn.data.tokenize import TokenRow, collate
from unlearn.errors import DataError
from unlearn.types import Row, TokenBatch


class Alternates:
    """Tokenised variants of rows, looked up by ``row_id_B``.

    Which variant a row gets depends on its id and ``draw`` alone, so neither the order of a batch nor the number of devices matters.
    """

    def __init__(self, variants: Mapping[int, Sequence[TokenRow]], pad_id: int) -> None:
        """Keep the variants of each row id; a row without any is absent."""
        self.variants = {row_id: tuple(rows) for row_id, rows in variants.items() if rows}
        self.pad_id = pad_id

    @classmethod
    def of(cls, rows: Sequence[Row], answers: Mapping[int, Sequence[str]], reader: Reader) -> Alternates:
        """``answers[row_id]`` in the place of each row's own; rows without an entry are left out.

        Raises:
            DataError: no row has another answer.
        """
        chosen = [(row, text) for row in rows for text in answers.get(row.row_id, ())]
        if not chosen:
            raise DataError("Rows of the forget stream must have other answers to be trained on; found none.")
        tokens = reader.tokens([replace(row, answer=text) for row, text in chosen])
        variants: dict[int, list[TokenRow]] = {}
        for (row, _), made in zip(chosen, tokens, strict=True):
            variants.setdefault(row.row_id, []).append(made)
        return cls(variants, reader.pad_id)

    def __len__(self) -> int:
        return len(self.variants)

    def batch(self, batch: TokenBatch, draw: int = 0) -> tuple[TokenBatch | None, Tensor]:
        """One variant of every row of ``batch`` that has any, and the places of those rows in it.

        Args:
            batch: rows to look up.
            draw: number of the draw (the optimiser step); another number may give other variants.

        Returns:
            ``(variants, index_N)`` with ``variants.row_id_B == batch.row_id_B[index_N]``; ``(None, empty)`` where no row has a variant.
        """
        device = batch.input_ids_BT.device
        found = [(place, self.variants[i]) for place, i in enumerate(batch.row_id_B.tolist()) if i in self.variants]
        index_N = torch.tensor([place for place, _ in found], dtype=torch.long, device=device)
        if not found:
            return None, index_N
        rows = [variants[(variants[0].row_id * 7919 + draw) % len(variants)] for _, variants in found]
        return TokenBatch(*(t.to(device) for t in collate(rows, self.pad_id))), index_N


def refusals(rows: Sequence[Row], texts: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Every refusal as an answer to each question; statements and mentions are no questions and get none.

    >>> refusals([Row(row_id=4, entity="Oslo", prompt="Where is Oslo?", answer="Norway")], ("unknown",))
    {4: ('unknown',)}
    """
    return {row.row_id: tuple(texts) for row in rows if row.kind == "qa"}
