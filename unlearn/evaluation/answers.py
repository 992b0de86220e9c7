"""What a model says and what it finds likely: one teacher-forced pass and one generation pass per set of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from unlearn.data.tokenize import TokenRow, batches
from unlearn.functional.memorisation import truth_ratio, truth_ratio_score
from unlearn.functional.statistics import bootstrap_interval
from unlearn.functional.text import is_answer, is_refusal, rouge_l
from unlearn.functional.tokens import row_mean, token_nll
from unlearn.models.decoder import device_of
from unlearn.models.forward import forward, generate
from unlearn.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader

SET_NAMES: Mapping[str, tuple[str, str]] = {
    "forget": ("forget", ""),
    "forget_paraphrased": ("forget", "_paraphrased"),
    "retain": ("retain", ""),
    "retain_unseen": ("retain", "_unseen"),
    "unknown": ("unknown", ""),
}
"""Evaluation set -> (scope, suffix of the key); any other set is its own scope."""


@dataclass(frozen=True)
class AnswerRecords:
    """Per-row measurements of one evaluation set, in the order of ``rows`` (``truth_ratio``: of the rows that carry wrong answers)."""

    rows: Sequence[Row]
    texts: Sequence[str]
    values: Mapping[str, np.ndarray]

    def summary(self, name: str, bootstrap: int = 0, seed: int = 0) -> dict[str, float]:
        """Means over rows under the keys of set ``name``, with 95 % bootstrap intervals over entities when ``bootstrap`` > 0.

        The truth ratio is read as TOFU does: ``mean min(r, 1/r)`` on forget sets, ``mean max(0, 1 - r)`` elsewhere.
        """
        scope, suffix = SET_NAMES.get(name, (name, ""))
        groups = [row.entity for row in self.rows]
        results: dict[str, float] = {}
        for metric, values in self.values.items():
            key = f"{scope}/{metric}{suffix}"
            if metric == "truth_ratio":
                reading = "forget" if scope == "forget" else "utility"
                values = truth_ratio_score(torch.from_numpy(values), reading).numpy()
            results[key] = float(values.mean())
            if bootstrap and metric in ("accuracy", "probability", "rouge_l"):
                low, high = bootstrap_interval(values, bootstrap, seed, groups=groups)
                results |= {f"{key}/ci_low": low, f"{key}/ci_high": high}
        return results


@torch.no_grad()
def row_nll(lm: PreTrainedModel, tokens: Sequence[TokenRow], reader: Reader) -> np.ndarray:
    """Mean negative log-likelihood of the answer tokens in nats, one value per row."""
    values = np.zeros(len(tokens))
    device = device_of(lm)
    for index, cpu_batch in batches(tokens, reader.batch_size, reader.pad_id):
        batch = type(cpu_batch)(*(t.to(device) for t in cpu_batch))
        out = forward(lm, batch)
        nll_B = row_mean(token_nll(out.logits_AV, out.targets_A), out.row_A, len(index))
        values[list(index)] = nll_B.double().cpu().numpy()
    return values


def _truth_ratios(lm: PreTrainedModel, rows: Sequence[Row], reader: Reader) -> np.ndarray | None:
    """Truth ratio of the rows that carry wrong answers; None where no row does."""
    asked = [replace(row, mentions=()) for row in rows if row.perturbed_answers]  # a wrong answer may name somebody else
    if not asked:
        return None
    right = row_nll(lm, reader.tokens([replace(r, answer=r.paraphrased_answer or r.answer) for r in asked]), reader)
    wrong_rows = [replace(r, answer=answer) for r in asked for answer in r.perturbed_answers]
    wrong = row_nll(lm, reader.tokens(wrong_rows), reader)
    counts = [len(r.perturbed_answers) for r in asked]
    wrong_BK = np.full((len(asked), max(counts)), np.nan)
    for row, part in enumerate(np.split(wrong, np.cumsum(counts)[:-1])):
        wrong_BK[row, : len(part)] = part
    ratios: np.ndarray = truth_ratio(torch.from_numpy(right), torch.from_numpy(wrong_BK)).numpy()
    return ratios


@torch.no_grad()
def answer(lm: PreTrainedModel, prompts: Sequence[TokenRow], reader: Reader) -> list[str]:
    """Greedy answers to the prompts of rows (everything before the answer's first token)."""
    ids = [list(row.ids[: row.answer_start]) for row in prompts]
    said = generate(lm, reader.tokenizer, ids, max_new_tokens=reader.max_new_tokens, stop_ids=reader.stop_ids, batch_size=reader.batch_size)
    return [reader.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said]


def measure_answers(lm: PreTrainedModel, rows: Sequence[Row], reader: Reader) -> AnswerRecords:
    """Accuracy, refusal, ROUGE-L recall, probability (and truth ratio where rows carry wrong answers) of one set.

    Probability is ``exp(-mean NLL)`` of the reference answer, in (0, 1] (TOFU, arXiv 2401.06121, section 2.2.2).
    """
    tokens = reader.tokens(rows)
    texts = answer(lm, tokens, reader)
    values = {
        "accuracy": np.array([is_answer(t, r.answer) for t, r in zip(texts, rows, strict=True)], dtype=float),
        "refusal_rate": np.array([is_refusal(t, reader.refusals) for t in texts], dtype=float),
        "rouge_l": np.array([rouge_l(t, r.answer)[0] for t, r in zip(texts, rows, strict=True)]),
        "probability": np.exp(-row_nll(lm, tokens, reader)),
    }
    ratios = _truth_ratios(lm, rows, reader)
    if ratios is not None:
        values["truth_ratio"] = ratios
    return AnswerRecords(rows, texts, values)
