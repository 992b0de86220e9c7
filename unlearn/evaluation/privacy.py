"""The target's rows beside rows that no model has seen, and beside the same rows under a model that never saw the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from unlearn.evaluation.scoring import score
from unlearn.functional.membership import attack_scores, membership_auc, privleak
from unlearn.functional.statistics import forget_quality

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.evaluation.answers import AnswerRecords
    from unlearn.types import Row

MIN_K = 0.4
"""Share of tokens that Min-K% looks at (MUSE, arXiv 2407.06460)."""


def comparable(lm: PreTrainedModel, records: AnswerRecords, holdout: Sequence[Row], reader: Reader) -> dict[str, list[float]]:
    """Per-row numbers of the forget set that are set against those of another model or of other rows.

    ``truth_ratio`` of the rows that carry wrong answers; ``nll`` and, where there are holdout rows, ``forget_<attack>`` and
    ``holdout_<attack>``: the scores of the membership attacks, all from the one pass that measured the rows.
    """
    kept: dict[str, list[float]] = {}
    if "truth_ratio" in records.values:
        kept["truth_ratio"] = records.values["truth_ratio"].tolist()
    if records.scores is None or not holdout:
        return kept
    n = len(records.rows)
    eos = reader.tokenizer.eos_token_id
    beside = score(lm, reader.tokens(holdout), reader, [row.answer for row in holdout])
    kept["forget_nll"], kept["holdout_nll"] = records.scores.nll()[:n].tolist(), beside.nll().tolist()
    for side, scores, rows in (("forget", records.scores, n), ("holdout", beside, len(holdout))):
        kept |= {f"{side}_{name}": values[:rows].tolist() for name, values in attack_scores(scores, k=MIN_K, eos_id=eos).items()}
    return kept


def membership(kept: Mapping[str, list[float]]) -> dict[str, float]:
    """``forget/mia_<attack>``: AUC of each attack, forget rows against rows never seen (1 memorised, 0.5 as if never seen), and
    ``forget/privleak`` in percent from Min-K% with a reference of 0.5 (0 is the goal); empty without holdout rows."""
    names = [key.removeprefix("holdout_") for key in kept if key.startswith("holdout_") and key != "holdout_nll"]
    found = {f"forget/mia_{name}": membership_auc(kept[f"forget_{name}"], kept[f"holdout_{name}"]) for name in names}
    if "forget/mia_min_k" in found:
        found["forget/privleak"] = privleak(found["forget/mia_min_k"])
    return found


def against_gold(kept: Mapping[str, list[float]], gold: Mapping[str, list[float]]) -> dict[str, float]:
    """The model beside the one that never saw the target.

    ``forget/quality`` (p-value of the two-sample Kolmogorov-Smirnov test on truth ratios: TOFU, arXiv 2401.06121, section 2.2.3) with its
    statistic ``forget/quality_ks`` (a p-value saturates); ``forget/privleak_gold`` (Min-K%, reference: the gold model's own AUC, percent)
    and ``forget/mia_reference`` (loss minus the gold model's loss).
    """
    found: dict[str, float] = {}
    if "truth_ratio" in kept and "truth_ratio" in gold:
        finite = [[v for v in side["truth_ratio"] if math.isfinite(v)] for side in (kept, gold)]
        p_value, statistic = forget_quality(*finite)
        found |= {"forget/quality": p_value, "forget/quality_ks": statistic}
    if "forget_min_k" in kept and "forget_min_k" in gold:
        areas = [membership_auc(side["forget_min_k"], side["holdout_min_k"]) for side in (kept, gold)]
        found["forget/privleak_gold"] = privleak(*areas)
        relative = [torch.tensor(kept[f"{rows}_nll"]) - torch.tensor(gold[f"{rows}_nll"]) for rows in ("forget", "holdout")]
        found["forget/mia_reference"] = membership_auc(*relative)
    return found
