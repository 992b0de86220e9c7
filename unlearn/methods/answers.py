"""What methods share that set other answers against a row's own: where those come from, when they change, rows that have none."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from unlearn.data.alternates import Alternates, refusals
from unlearn.functional.preference import sequence_logprob
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.retain import RetainMethod
from unlearn.models.forward import forward
from unlearn.types import Row, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader


def take(batch: TokenBatch, index_N: Tensor) -> TokenBatch:
    """The rows of ``batch`` at ``index_N``."""
    return TokenBatch(*(t[index_N] for t in batch))


def nothing(lm: PreTrainedModel, batch: TokenBatch, passes: int = 1) -> Tensor:
    """The term of a process none of whose rows takes part: the mean over the others' (0 without any), reaching every trained weight.

    The model reads ``batch`` as often as it is read elsewhere, since processes that share weights must run alike.
    """
    logits = [forward(lm, batch).logits_AV.flatten()[:0] for _ in range(passes)]
    return mean(torch.cat(logits))


def answer_logprob(lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Summed log-probability of each row's answer [B], in nats; fp32 at least."""
    out = forward(lm, batch)
    return sequence_logprob(token_nll(out.logits_AV, out.targets_A), out.row_A, len(batch.row_id_B))


class AnswerMethod(RetainMethod, ABC):
    """A method that trains other answers to the forget questions: refusals, unless a subclass brings its own.

    One of them is drawn for each row by its id and the number of the step. Statements and mentions are no questions, so nothing can be
    answered in their place: they are left out of the term. The subclass declares ``rows`` in ``needs``.
    """

    alternates: Alternates
    step = 0

    def _source(self) -> tuple[tuple[Row, ...], tuple[str, ...], Reader]:
        """Rows of the forget stream, the source's refusals, and the reader."""
        data, reader = self.context.data, self.context.reader
        if data is None or reader is None:
            raise ValueError(f"{self.name} needs rows and a reader in its context")
        return data.streams["forget"], data.refusals, reader

    def answers(self, lm: PreTrainedModel, rows: Sequence[Row]) -> Mapping[int, Sequence[str]]:
        """Other answers by row id; here every refusal of the source for each question."""
        return refusals(rows, self._source()[1])

    def setup(self, lm: PreTrainedModel) -> None:
        """Tokenise the other answers.

        Raises:
            DataError: no row of the forget stream has any.
        """
        rows, _, reader = self._source()
        self.alternates = Alternates.of(rows, self.answers(lm, rows), reader)

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Another step, another draw."""
        self.step = step
