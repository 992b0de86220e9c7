"""What a model says and what it finds likely: one teacher-forced pass and one generation pass per set of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from unlearn.data.tokenize import TokenRow
from unlearn.evaluation.scoring import score
from unlearn.evaluation.shard import spread
from unlearn.functional.choice import choice_correct, likelihood_scores
from unlearn.functional.memorisation import option_probability, truth_ratio, truth_ratio_score
from unlearn.functional.statistics import bootstrap_interval
from unlearn.functional.text import is_answer, is_refusal, rouge_1, rouge_l
from unlearn.models.forward import generate
from unlearn.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.functional.scores import TokenScores

SET_NAMES: Mapping[str, tuple[str, str]] = {
    "forget": ("forget", ""),
    "forget_paraphrased": ("forget", "_paraphrased"),
    "retain": ("retain", ""),
    "retain_unseen": ("retain", "_unseen"),
    "unknown": ("unknown", ""),
}
"""Evaluation set -> (scope, suffix of the key); any other set is its own scope."""


INTERVALS = ("accuracy", "probability", "rouge_l", "extraction_strength", "exact_memorisation", "truth_ratio", "choice_accuracy")
"""Metrics whose means carry a bootstrap interval."""


@dataclass(frozen=True)
class AnswerRecords:
    """Per-row measurements of one evaluation set, in the order of ``rows`` (``truth_ratio``: of the rows that carry wrong answers)."""

    rows: Sequence[Row]
    texts: Sequence[str]
    values: Mapping[str, np.ndarray]
    scores: TokenScores | None = None
    """of the rows, and after them of the wrong answers that were scored beside them"""

    def summary(self, name: str, bootstrap: int = 0, seed: int = 0) -> dict[str, float]:
        """Means over rows under the keys of set ``name``, with 95 % bootstrap intervals over entities when ``bootstrap`` > 0.

        The truth ratio is read as TOFU does: ``mean min(r, 1/r)`` on forget sets, ``mean max(0, 1 - r)`` elsewhere.
        """
        scope, suffix = SET_NAMES.get(name, (name, ""))
        results: dict[str, float] = {}
        for metric, values in self.values.items():
            key = f"{scope}/{metric}{suffix}"
            if metric == "truth_ratio":
                reading = "forget" if scope == "forget" else "utility"
                values = truth_ratio_score(torch.from_numpy(values), reading).numpy()
            results[key] = float(values.mean())
            if bootstrap and metric in INTERVALS:
                rows = [row for row in self.rows if row.perturbed_answers] if len(values) < len(self.rows) else self.rows
                low, high = bootstrap_interval(values, bootstrap, seed, groups=[row.entity for row in rows])
                results |= {f"{key}/ci_low": low, f"{key}/ci_high": high}
        return results


@torch.no_grad()
def answer(lm: PreTrainedModel, prompts: Sequence[TokenRow], reader: Reader) -> list[str]:
    """Greedy answers to the prompts of rows (everything before the answer's first token), shared out over the processes."""

    def work(mine: Sequence[TokenRow]) -> list[str]:
        ids = [list(row.ids[: row.answer_start]) for row in mine]
        limits = {"max_new_tokens": reader.max_new_tokens, "stop_ids": reader.stop_ids, "batch_size": reader.batch_size}
        said = generate(lm, reader.tokenizer, ids, **limits)  # type: ignore[arg-type]
        return [str(reader.tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in said]

    return spread(prompts, work)


class _Wrong:
    """What is scored beside rows that carry wrong answers: the right answer in other words, where there are such, and each wrong one."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.asked = [i for i, row in enumerate(rows) if row.perturbed_answers]
        plain = [replace(rows[i], mentions=()) for i in self.asked]  # a wrong answer may name somebody else
        self.reworded = {
            i: replace(row, answer=row.paraphrased_answer) for i, row in zip(self.asked, plain, strict=True) if row.paraphrased_answer
        }
        self.counts = [len(row.perturbed_answers) for row in plain]
        self.rows = [*self.reworded.values(), *(replace(row, answer=text) for row in plain for text in row.perturbed_answers)]

    def losses(self, nll: np.ndarray, n_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(right_N, reworded_N, wrong_NK) of the asked rows, nan where a row has fewer wrong answers than others.

        Args:
            nll: losses of all rows and then of ``self.rows``.
            n_rows: number of the former.
        """
        reworded = nll[:n_rows].copy()
        reworded[list(self.reworded)] = nll[n_rows : n_rows + len(self.reworded)]
        wrong_NK = np.full((len(self.asked), max(self.counts)), np.nan)
        for row, part in enumerate(np.split(nll[n_rows + len(self.reworded) :], np.cumsum(self.counts)[:-1])):
            wrong_NK[row, : len(part)] = part
        return torch.from_numpy(nll[:n_rows][self.asked]), torch.from_numpy(reworded[self.asked]), torch.from_numpy(wrong_NK)

    def values(self, nll: np.ndarray, n_rows: int) -> dict[str, np.ndarray]:
        """``truth_ratio``, ``option_probability`` and ``choice_accuracy`` (options by likelihood per token) of the asked rows."""
        right_N, reworded_N, wrong_NK = self.losses(nll, n_rows)
        options_NK = likelihood_scores(torch.cat([right_N[:, None], wrong_NK], dim=1))
        return {
            "truth_ratio": truth_ratio(reworded_N, wrong_NK).numpy(),
            "option_probability": option_probability(right_N, wrong_NK).numpy(),
            "choice_accuracy": choice_correct(options_NK, torch.zeros(len(right_N), dtype=torch.long)).double().numpy(),
        }


def right(text: str, row: Row) -> bool:
    """Whether a text gives the row's answer, or another one that is accepted."""
    return any(is_answer(text, answer) for answer in (row.answer, *row.accepted_answers))


def entity_accuracies(evaluation: Mapping[str, Sequence[Row]], texts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Share of right answers about each entity, by the key of the set's accuracy; sets of ``SET_NAMES`` only.

    Args:
        evaluation: rows of every set.
        texts: answers to them, in their order.
    """
    found: dict[str, dict[str, float]] = {}
    for name in (name for name in SET_NAMES if name in evaluation and name in texts):
        hits: dict[str, list[bool]] = {}
        for row, text in zip(evaluation[name], texts[name], strict=True):
            hits.setdefault(row.entity, []).append(right(text, row))
        scope, suffix = SET_NAMES[name]
        found[f"{scope}/accuracy{suffix}"] = {entity: sum(own) / len(own) for entity, own in hits.items()}
    return found


def measure_answers(lm: PreTrainedModel, rows: Sequence[Row], reader: Reader) -> AnswerRecords:
    """Everything about one set: one generation pass feeds the text metrics, one teacher-forced pass the likelihood metrics.

    ``accuracy`` (any accepted answer), ``refusal_rate``, ``rouge_1`` and ``rouge_l`` (recall), ``rouge_l_f1`` of greedy answers;
    ``probability`` (``exp(-mean NLL)`` of the reference answer: TOFU, arXiv 2401.06121, section 2.2.2), ``exact_memorisation``,
    ``extraction_strength``, and, where rows carry wrong answers, ``truth_ratio``, ``option_probability`` (the right one's share of all)
    and ``choice_accuracy`` (whether it is the likeliest per token); all in [0, 1] but the truth ratio (>= 0).
    """
    texts = answer(lm, reader.tokens(rows), reader)
    wrong = _Wrong(rows)
    scores = score(lm, reader.tokens([*rows, *wrong.rows]), reader, [row.answer for row in (*rows, *wrong.rows)])
    eos = reader.tokenizer.eos_token_id
    n = len(rows)
    overlap_1, overlap_l = (np.array([f(t, r.answer) for t, r in zip(texts, rows, strict=True)]) for f in (rouge_1, rouge_l))
    values = {
        "accuracy": np.array([right(t, r) for t, r in zip(texts, rows, strict=True)], dtype=float),
        "refusal_rate": np.array([is_refusal(t, reader.refusals) for t in texts], dtype=float),
        "rouge_1": overlap_1[:, 0],
        "rouge_l": overlap_l[:, 0],
        "rouge_l_f1": overlap_l[:, 1],
        "probability": scores.probability().numpy()[:n],
        "exact_memorisation": scores.exact_memorisation(eos).numpy()[:n],
        "extraction_strength": scores.extraction_strength(eos).numpy()[:n],
    }
    if wrong.asked:
        values |= wrong.values(scores.nll().numpy(), n)
    return AnswerRecords(rows, texts, values, scores)
