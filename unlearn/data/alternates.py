"""Other answers to the same prompts: refusals, plausible wrong answers, anything that a row's own answer is set against."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unlearn.data.entities import find_mention
from unlearn.data.reader import Reader
from unlearn.data.tokenize import TokenRow, batches, collate
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
        tokens = reader.tokens([with_answer(row, text) for row, text in chosen])
        variants: dict[int, list[TokenRow]] = {}
        for (row, _), made in zip(chosen, tokens, strict=True):
            variants.setdefault(row.row_id, []).append(made)
        return cls(variants, reader.pad_id)

    def __len__(self) -> int:
        return len(self.variants)

    def pick(self, row_id: int, draw: int = 0) -> int:
        """Place, among its variants, of the one that row ``row_id`` gets in draw number ``draw``.

        Raises:
            KeyError: the row has none.
        """
        digest = hashlib.blake2b(f"{row_id} {draw}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) % len(self.variants[row_id])

    def batch(self, batch: TokenBatch, draw: int = 0) -> tuple[TokenBatch | None, Tensor]:
        """One variant of every row of ``batch`` that has any, and the places of those rows in it.

        Args:
            batch: rows to look up.
            draw: number of the draw (the optimiser step); another number may give other variants.

        Returns:
            ``(variants, index_N)`` with ``variants.row_id_B == batch.row_id_B[index_N]``; ``(None, empty)`` where no row has a variant.
        """
        device = batch.input_ids_BT.device
        found = [(place, i) for place, i in enumerate(batch.row_id_B.tolist()) if i in self.variants]
        index_N = torch.tensor([place for place, _ in found], dtype=torch.long, device=device)
        if not found:
            return None, index_N
        rows = [self.variants[i][self.pick(i, draw)] for _, i in found]
        return TokenBatch(*(t.to(device) for t in collate(rows, self.pad_id))), index_N

    def measure(self, score: Callable[[TokenBatch], Tensor], batch_size: int, device: torch.device | str = "cpu") -> AlternateScores:
        """One number for every variant of every row, to be looked up while training.

        Args:
            score: takes a batch of variants, gives one number per row [B].
            batch_size: most variants in one batch, >= 1.
            device: where the batches are put.
        """
        places = [(row_id, n) for row_id, rows in self.variants.items() for n in range(len(rows))]
        values = [0.0] * len(places)
        for chosen, batch in batches([self.variants[i][n] for i, n in places], batch_size, self.pad_id):
            for place, value in zip(chosen, score(TokenBatch(*(t.to(device) for t in batch))).tolist(), strict=True):
                values[place] = value
        return AlternateScores(self, dict(zip(places, values, strict=True)))


class AlternateScores:
    """Numbers that belong to the variants of ``Alternates``: see ``Alternates.measure``."""

    def __init__(self, alternates: Alternates, values: Mapping[tuple[int, int], float]) -> None:
        """Keep the number of every (row id, place of the variant)."""
        self.alternates = alternates
        self.values = values

    def of(self, variants: TokenBatch, draw: int = 0) -> Tensor:
        """Numbers [N], fp32, of a batch that ``Alternates.batch`` gave for the same ``draw``."""
        found = [self.values[i, self.alternates.pick(i, draw)] for i in variants.row_id_B.tolist()]
        return torch.tensor(found, dtype=torch.float32, device=variants.row_id_B.device)


def with_answer(row: Row, text: str) -> Row:
    """The row with another answer; a name that stood in the old answer alone is no longer looked for.

    >>> with_answer(Row(row_id=0, entity="Oslo", prompt="Which city is it?", answer="Oslo", mentions=("Oslo",)), "Rome").mentions
    ()
    """
    named = bool(row.mentions) and find_mention(row.prompt, text, row.mentions) is not None
    return replace(row, answer=text, mentions=row.mentions if named else ())


def refusals(rows: Sequence[Row], texts: Sequence[str], most: int | None = None) -> dict[int, tuple[str, ...]]:
    """Refusals as answers to each question; statements and mentions are no questions and get none.

    Args:
        rows: rows of any kind.
        texts: all refusals.
        most: most refusals of one question, >= 1, drawn by its row id; None for all of them.

    >>> refusals([Row(row_id=4, entity="Oslo", prompt="Where is Oslo?", answer="Norway")], ("unknown",))
    {4: ('unknown',)}
    """
    few = len(texts) if most is None else min(most, len(texts))
    return {row.row_id: tuple(random.Random(row.row_id).sample(texts, few)) for row in rows if row.kind == "qa"}


def given(rows: Sequence[Row]) -> dict[int, tuple[str, ...]]:
    """The plausible wrong answers that the source gives with each question; rows without any are absent.

    >>> given([Row(row_id=4, entity="Oslo", prompt="Where is Oslo?", answer="Norway", perturbed_answers=("Chile",))])
    {4: ('Chile',)}
    """
    return {row.row_id: row.perturbed_answers for row in rows if row.kind == "qa" and row.perturbed_answers}
