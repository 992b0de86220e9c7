"""How far our pure functions are from what open-unlearning gives for the same logits, metric by metric."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn.functional.membership import attack_score, membership_auc, privleak, rel_diff
from unlearn.functional.memorisation import (
    exact_memorisation,
    extraction_strength,
    option_probability,
    probability,
    truth_ratio,
    truth_ratio_score,
)
from unlearn.functional.scores import TokenScores, token_scores
from unlearn.functional.statistics import forget_quality
from unlearn.functional.tokens import answer_logits, row_mean, token_nll
from unlearn.functional.utility import harmonic_mean

ORACLES = Path(__file__).parents[2] / "tests" / "oracles"
SIDES = ("forget", "holdout")

Rows = list[dict[str, Any]]
Pairs = list[tuple[float, float]]
"""(ours, theirs)."""


def answers(logits: list[Any], rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the answer, targets, row of each; float64."""
    return answer_logits(torch.tensor(logits, dtype=torch.float64), torch.tensor([row["labels"] for row in rows]))


def scores(rows: Rows, logits: list[Any] | None = None) -> TokenScores:
    """What the one pass keeps of these rows; token i is the letter chr(97 + i) of the text that is compressed."""
    texts = ["".join(chr(97 + i) for i in row["labels"] if i >= 0) for row in rows]
    return token_scores(*answers(logits or [row["logits"] for row in rows], rows), len(rows), texts)


def nll(rows: Rows) -> Tensor:
    """Mean loss of each row."""
    logits_AV, targets_A, row_A = answers([row["logits"] for row in rows], rows)
    return row_mean(token_nll(logits_AV, targets_A), row_A, len(rows))


def column(case: dict[str, Any], key: str, rows: int | None = None) -> Tensor:
    """Their values by row."""
    by_index = case["value_by_index"]
    return torch.tensor([by_index[str(i)][key] for i in range(rows or len(by_index))], dtype=torch.float64)


def pairs(ours: Tensor, theirs: Tensor, mean: float | None = None) -> Pairs:
    """Row by row, and the mean where theirs is given."""
    found = list(zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True))
    return found if mean is None else [*found, (ours.mean().item(), mean)]


def memorisation(metrics: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Pairs]:
    """Probability, memorisation and extraction of every set; both ways to them: from logits, and from the scores of one pass."""
    found: dict[str, Pairs] = {}
    for side in ("forget", "holdout", "edge"):
        rows, case = inputs[side], metrics[side]
        made, at = scores(rows), answers([row["logits"] for row in rows], rows)
        n = len(rows)
        ours = {
            "probability": (probability(token_nll(*at[:2]), at[2], n), made.probability()),
            "exact_memorization": (exact_memorisation(*at, n, compat=True), made.exact_memorisation(compat=True)),
            "extraction_strength": (extraction_strength(*at, n, compat=True), made.extraction_strength(compat=True)),
        }
        for name, both in ours.items():
            theirs = column(case[name], "prob" if name == "probability" else "score")
            found[f"{side}: {name}"] = [p for values in both for p in pairs(values, theirs, case[name]["agg_value"])]
        listed = [made.logprob_A[made.row_A == i] for i in range(n)]
        theirs_by_row = [torch.tensor(values, dtype=torch.float64) for values in case["tokenwise_logprobs"]]
        found[f"{side}: tokenwise_logprobs"] = [
            p for mine, their in zip(listed, theirs_by_row, strict=True) for p in pairs(mine[: len(their)], their)
        ]
    return found


def truth_ratios(metrics: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Pairs]:
    """Losses of the right and wrong answers from logits, and what is made of them, over the rows whose logits are there."""
    right_B, wrong_BK = nll(inputs["paraphrase"]), torch.stack([nll(rows) for rows in inputs["perturbed"]], dim=1)
    n = len(right_B)
    found = {"paraphrase_probability": pairs((-right_B).exp(), column(metrics["paraphrase_probability"], "prob", n))}
    found["paraphrase_probability"] += pairs(right_B, column(metrics["paraphrase_probability"], "avg_loss", n))
    found["perturbed_probability"] = pairs(wrong_BK, column(metrics["perturbed_probability"], "avg_loss", n))
    found["perturbed_probability"] += pairs((-wrong_BK).exp(), column(metrics["perturbed_probability"], "prob", n))
    ratio_B = truth_ratio(right_B, wrong_BK)
    every_B = truth_ratio(*(column(metrics[f"{side}_probability"], "avg_loss") for side in ("paraphrase", "perturbed")))
    for name in ("closer_to_1_better", "true_better"):
        found[f"truth_ratio_{name}"] = pairs(ratio_B, column(metrics[f"truth_ratio_{name}"], "score", n))
    for kind, name in (("forget", "closer_to_1_better"), ("utility", "true_better")):
        found[f"truth_ratio_{name}"] += [(truth_ratio_score(every_B, kind).mean().item(), metrics[f"truth_ratio_{name}"]["agg_value"])]
    share = metrics["truth_ratio_prob_mean"]
    found["truth_ratio_prob_mean"] = pairs(truth_ratio_score(ratio_B, "probability"), column(share, "score", n))
    found["truth_ratio_prob_mean"] += [(truth_ratio_score(every_B, "probability").mean().item(), share["agg_value"])]
    found["probability_w_options"] = pairs(option_probability(right_B, wrong_BK), column(metrics["probability_w_options"], "prob", n))
    found["ks_test"] = [(forget_quality(every_B.numpy(), metrics["ks_test"]["retain_scores"])[0], metrics["ks_test"]["agg_value"])]
    return found


def attacks(metrics: dict[str, Any], inputs: dict[str, Any], reference: dict[str, Any]) -> dict[str, Pairs]:
    """Every membership attack: scores of both sides, their means, the area."""
    kinds = {"mia_loss": ("loss", 0.4), "mia_zlib": ("zlib", 0.4)}
    kinds |= {f"mia_min_k_{k}": ("min_k", k) for k in (0.2, 0.4, 1.0)}
    kinds |= {f"mia_min_k_plus_plus_{k}": ("min_k_plus_plus", k) for k in (0.2, 0.4, 1.0)}
    found: dict[str, Pairs] = {}
    for name, (attack, k) in kinds.items():
        ours = {side: attack_score(scores(inputs[side]), attack, k=k, compat=True) for side in SIDES}
        found[name] = [p for s in SIDES for p in pairs(ours[s], column(metrics[name][s], "score"), metrics[name][s]["agg_value"])]
        found[name].append((membership_auc(ours["forget"], ours["holdout"]), metrics[name]["auc"]))
    found["mia_reference"] = []
    for side in SIDES:
        logits = reference[side]
        rows = inputs[side][: len(logits)]
        ours_B = attack_score(scores(rows), "reference", reference_nll_B=scores(rows, logits).nll())
        found["mia_reference"] += pairs(ours_B, column(metrics["mia_reference"][side], "score", len(rows)))
    areas = [column(metrics["mia_reference"][side], "score").numpy() for side in SIDES]
    found["mia_reference"].append((membership_auc(*areas), metrics["mia_reference"]["auc"]))
    return found


def compare(case: dict[str, Any], reference: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Largest absolute difference of every metric of one file.

    Raises:
        KeyError: a metric of the file has no counterpart here.
    """
    metrics, inputs = case["metrics"], case["inputs"]
    found = memorisation(metrics, inputs) | truth_ratios(metrics, inputs) | attacks(metrics, inputs, reference)
    found["privleak"] = [(privleak(c["score"], c["ref"]), c["agg_value"]) for c in metrics["privleak"]]
    found["rel_diff"] = [(rel_diff(c["score"], c["ref"]), c["agg_value"]) for c in metrics["rel_diff"]]
    found["hm_aggregate"] = [(harmonic_mean(metrics["hm_aggregate"]["values"]), metrics["hm_aggregate"]["agg_value"])]
    if lacking := set(metrics) - {name.split(":")[0] for name in found}:
        raise KeyError(f"no counterpart of {', '.join(sorted(lacking))}")
    return {name: {"numbers": len(p), "largest difference": max(abs(a - b) for a, b in p)} for name, p in found.items()}


def agreement() -> dict[str, dict[str, dict[str, float]]]:
    """Largest differences by file and metric: tests/oracles/metrics.json, and the full set where UNLEARN_SHARED has it."""
    kept = json.loads((ORACLES / "losses.json").read_text(encoding="utf-8"))["inputs"]["ref_logits"]
    found = {"metrics.json": compare(json.loads((ORACLES / "metrics.json").read_text(encoding="utf-8")), kept)}
    full = Path(os.environ.get("UNLEARN_SHARED", "")) / "oracles" / "logits.json"
    if os.environ.get("UNLEARN_SHARED") and full.exists():
        case = json.loads(full.read_text(encoding="utf-8"))
        found["logits.json"] = compare(case, case["inputs"]["ref_logits"])
    return found
