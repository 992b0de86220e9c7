"""Rows in, tokens out: the one place where everybody outside the DataModule turns rows into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.data.tokenize import TokenRow, batches, stop_ids, tokenize_rows
from unlearn.types import PromptFormat, Row, TokenBatch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How rows become tokens and answers become text."""

    tokenizer: PreTrainedTokenizerBase
    prompt_format: PromptFormat
    refusals: tuple[str, ...]
    max_length: int
    batch_size: int
    max_new_tokens: int

    @property
    def pad_id(self) -> int:
        """Padding token."""
        return int(self.tokenizer.pad_token_id)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return stop_ids(self.tokenizer, self.prompt_format)

    def tokens(self, rows: Sequence[Row]) -> list[TokenRow]:
        """Tokenise rows as training does."""
        return tokenize_rows(rows, self.tokenizer, self.prompt_format, self.max_length)

    def batches(self, rows: Sequence[Row | TokenRow], device: torch.device | str = "cpu") -> list[TokenBatch]:
        """Batches of at most ``batch_size`` rows of like length on ``device``; the order of the rows is not kept (``row_id_B`` tells)."""
        made = [row for row in rows if isinstance(row, TokenRow)] + self.tokens([row for row in rows if isinstance(row, Row)])
        return [TokenBatch(*(t.to(device) for t in batch)) for _, batch in batches(made, self.batch_size, self.pad_id)]
