"""One teacher-forced pass over a set of rows, for every metric of likelihood at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlearn.data.tokenize import TokenRow, batches
from unlearn.functional.scores import TokenScores, join_scores, token_scores
from unlearn.models.decoder import device_of, evaluating
from unlearn.models.forward import forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader


def teacher_forced(lm: PreTrainedModel, tokens: Sequence[TokenRow], reader: Reader) -> TokenScores:
    """Scores of the answer tokens of ``tokens``, in their order, on the CPU: one forward per batch and nothing else.

    Probability, exact memorisation, extraction strength and truth ratios come from the result's methods, membership attacks from
    ``unlearn.functional.membership``. ``texts`` are the answers' tokens decoded, without special ones.

    Args:
        lm: the model; its modules' modes come back as they were.
        tokens: rows, at least one.
        reader: for the batch size, the padding and the tokenizer.

    Raises:
        DataError: no rows.
    """
    device, parts, places = device_of(lm), [], []
    with evaluating(lm):
        for index, cpu_batch in batches(tokens, reader.batch_size, reader.pad_id):
            out = forward(lm, type(cpu_batch)(*(t.to(device) for t in cpu_batch)))
            texts = reader.tokenizer.batch_decode([list(tokens[i].ids[tokens[i].answer_start :]) for i in index], skip_special_tokens=True)
            parts.append(token_scores(out.logits_AV, out.targets_A, out.row_A, len(index), texts).cpu())
            places.append(index)
    return join_scores(parts, places)
