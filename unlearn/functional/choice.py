"""Multiple-choice questions: by the logits of the option letters, and by the likelihood of the options' texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn.errors import DataError
from unlearn.functional.tokens import upcast

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of the options, in order."""


def choice_prompt(question: str, options: Sequence[str]) -> str:
    r"""Question, one line per option, and ``Answer:`` (the form of MMLU, arXiv 2009.03300, and WMDP, arXiv 2403.03218).

    The model's next token, a letter with a space before it, is the answer.

    Raises:
        DataError: fewer than two options, or more than there are letters.

    >>> choice_prompt(" Which is a city? ", ["Paris", "pear"])
    'Which is a city?\nA. Paris\nB. pear\nAnswer:'
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"options must be 2 to {len(LETTERS)} answers; found {len(options)}.")
    return "\n".join([question.strip(), *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)), "Answer:"])


def letter_scores(logits_BV: Tensor, letter_ids: Sequence[int], counts_B: Tensor | None = None) -> Tensor:
    """Logits of the option letters ``[B, K]``, float32 at least.

    Args:
        logits_BV: logits at the last token of each prompt.
        letter_ids: token of each letter, K of them.
        counts_B: options of each question where they differ; letters beyond are -inf.

    >>> letter_scores(torch.tensor([[0.0, 1.0, 2.0, 9.0]]), [2, 1, 0], torch.tensor([2]))
    tensor([[2., 1., -inf]])
    """
    scores_BK = upcast(logits_BV[:, list(letter_ids)])
    if counts_B is None:
        return scores_BK
    beyond_BK = torch.arange(len(letter_ids), device=logits_BV.device) >= counts_B[:, None]
    return scores_BK.masked_fill(beyond_BK, -torch.inf)


def likelihood_scores(nll_BK: Tensor, lengths_BK: Tensor | None = None) -> Tensor:
    """Log-likelihood of each option's text ``[B, K]``, in nats: whole, or divided by its length.

    Args:
        nll_BK: summed negative log-likelihood of each option, nan where there is no such option.
        lengths_BK: length of each option, > 0: in tokens, or in bytes (what lm-evaluation-harness calls acc_norm). None: not divided.

    >>> likelihood_scores(torch.tensor([[2.0, 3.0, torch.nan]]), torch.tensor([[1, 3, 1]]))
    tensor([[-2., -1., -inf]])
    """
    scores_BK = -nll_BK if lengths_BK is None else -nll_BK / lengths_BK
    return scores_BK.masked_fill(nll_BK.isnan(), -torch.inf)


def choice_correct(scores_BK: Tensor, answer_B: Tensor) -> Tensor:
    """Whether the best option is the right one ``[B]``, in [0, 1].

    Where n options tie for the best, the right one among them counts 1 / n: a model that scores all options the same is at chance, wherever
    the right answers stand. A row with nan is wrong.

    Args:
        scores_BK: score of each option, higher is better; -inf where there is no such option.
        answer_B: index of the right option.

    Raises:
        DataError: an index that is no option.

    >>> choice_correct(torch.tensor([[0.1, 0.7], [0.9, 0.1], [0.5, 0.5]]), torch.tensor([1, 1, 0]))
    tensor([1.0000, 0.0000, 0.5000])
    """
    wrong = (answer_B < 0) | (answer_B >= scores_BK.shape[1])
    if bool(wrong.any()):
        raise DataError(f"answer_B must be in [0, {scores_BK.shape[1]}); found {int(answer_B[wrong][0])}.")
    scores_BK = upcast(scores_BK)
    best_BK = scores_BK == scores_BK.amax(-1, keepdim=True)
    hit_B = best_BK.gather(1, answer_B[:, None])[:, 0]
    return hit_B.to(scores_BK.dtype) / best_BK.sum(-1).clamp(min=1)
