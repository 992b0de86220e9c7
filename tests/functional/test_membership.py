from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torchmetrics.functional.classification import binary_auroc

from tests.functional.test_scores import of
from tests.oracles.load import column, oracle, stacked
from unlearn.errors import DataError
from unlearn.functional.membership import (
    ATTACKS,
    VARIANCE_FLOOR,
    attack_score,
    attack_scores,
    lowest_mean,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    rel_diff,
)
from unlearn.functional.scores import TokenScores, token_scores
from unlearn.functional.tokens import answer_logits

CLOSE = {"rtol": 0, "atol": 1e-6}
METRICS = oracle("metrics")["metrics"]
SIDES = ("forget", "holdout")


def lettered(name: str) -> TokenScores:
    """Token i stands for the letter chr(97 + i) in the text that is compressed."""
    texts = ["".join(chr(97 + i) for i in row["labels"] if i >= 0) for row in oracle("metrics")["inputs"][name]]
    return of(name, texts=tuple(texts))


def bare(logprobs: list[float], row_A: list[int], targets: list[int] | None = None) -> TokenScores:
    logprob_A = torch.tensor(logprobs, dtype=torch.float64)
    zeros = torch.zeros_like(logprob_A)
    target_A = torch.tensor(targets or [0] * len(logprobs))
    return TokenScores(
        logprob_A=logprob_A,
        mean_A=zeros,
        variance_A=zeros + 1,
        hit_A=zeros.bool(),
        target_A=target_A,
        row_A=torch.tensor(row_A),
        n_rows=max(row_A) + 1,
    )


KEYS = {
    "mia_loss": ("loss", 0.4),
    "mia_zlib": ("zlib", 0.4),
    **{f"mia_min_k_{k}": ("min_k", k) for k in (0.2, 0.4, 1.0)},
    **{f"mia_min_k_plus_plus_{k}": ("min_k_plus_plus", k) for k in (0.2, 0.4, 1.0)},
}


@pytest.mark.parametrize("key", KEYS)
def test_attacks_and_areas_equal_open_unlearning(key: str) -> None:
    attack, k = KEYS[key]
    ours = {}
    for side in SIDES:
        ours[side] = attack_score(lettered(side), attack, k=k, compat=True)
        torch.testing.assert_close(ours[side], column(METRICS[key][side]["value_by_index"], "score"), **CLOSE)
        assert ours[side].mean().item() == pytest.approx(METRICS[key][side]["agg_value"], abs=1e-6)
    assert membership_auc(ours["forget"], ours["holdout"]) == pytest.approx(METRICS[key]["auc"], abs=1e-12)


def test_reference_attack_equals_open_unlearning() -> None:
    losses = oracle("losses")["inputs"]
    for side in SIDES:
        labels_BT = stacked(losses[side])[1]
        reference = token_scores(*answer_logits(torch.tensor(losses["ref_logits"][side], dtype=torch.float64), labels_BT), 4)
        ours = attack_score(of(side, slice(0, 4)), "reference", reference_nll_B=reference.nll())
        torch.testing.assert_close(ours, column(METRICS["mia_reference"][side]["value_by_index"], "score")[:4], **CLOSE)
    areas = [[v["score"] for v in METRICS["mia_reference"][side]["value_by_index"].values()] for side in SIDES]
    assert membership_auc(*areas) == pytest.approx(METRICS["mia_reference"]["auc"], abs=1e-12)


@pytest.mark.parametrize("k", [0.1, 0.25, 0.4, 0.5, 1.0])
def test_min_k_equals_a_sort_of_each_row(k: float) -> None:
    scores = of("forget")
    for ours, values_A in (
        (min_k_score(scores, k), scores.logprob_A),
        (min_k_plus_plus_score(scores, k), (scores.logprob_A - scores.mean_A) / scores.variance_A.sqrt()),
    ):
        for row in range(10):
            lowest = np.sort(values_A[scores.row_A == row].numpy())
            assert ours[row].item() == pytest.approx(-lowest[: max(1, int(k * len(lowest)))].mean(), abs=1e-9)


def test_ours_leaves_out_ends_of_sequence_and_theirs_the_last_token() -> None:
    scores = bare([-1.0, -2.0, -9.0, -4.0, -3.0], [0, 0, 0, 1, 1], targets=[5, 6, 2, 7, 8])
    assert min_k_score(scores, 1.0).tolist() == [4.0, 3.5]
    assert min_k_score(scores, 1.0, eos_id=2).tolist() == [1.5, 3.5]
    assert min_k_score(scores, 1.0, compat=True).tolist() == [1.5, 4.0]
    assert attack_score(scores, "loss", eos_id=2).tolist() == [4.0, 3.5]


def test_rows_without_scored_tokens_are_nan() -> None:
    scores = bare([-1.0, -2.0, -3.0], [0, 2, 2], targets=[2, 5, 5])
    assert min_k_score(scores, 0.5, eos_id=2).isnan().tolist() == [True, True, False]
    assert lowest_mean(torch.zeros(0), torch.zeros(0, dtype=torch.long), 1, 0.5).isnan().all()


def test_certain_positions_do_not_divide_by_zero() -> None:
    scores = token_scores(torch.tensor([[900.0, 0.0]]), torch.tensor([0]), torch.tensor([0]), 1)
    assert min_k_plus_plus_score(scores).item() == 0.0
    wrong = token_scores(torch.tensor([[900.0, 0.0]]), torch.tensor([1]), torch.tensor([0]), 1)
    assert min_k_plus_plus_score(wrong).item() == pytest.approx(900 / VARIANCE_FLOOR**0.5, rel=1e-5)


def test_zlib_counts_bytes_of_the_text() -> None:
    text = "Ärzte, Ärzte, Ärzte"
    scores = token_scores(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([0, 0]), 1, [text])
    assert attack_score(scores, "zlib").item() == pytest.approx(math.log(4) / len(zlib.compress(text.encode("utf-8"))))


def test_all_attacks_at_once_are_those_that_have_what_they_need() -> None:
    plain, named = of("forget"), lettered("forget")
    assert list(attack_scores(plain)) == ["loss", "min_k", "min_k_plus_plus"]
    every = attack_scores(named, reference_nll_B=torch.zeros(10))
    assert tuple(every) == ATTACKS
    for attack, values_B in every.items():
        assert torch.equal(values_B, attack_score(named, attack, reference_nll_B=torch.zeros(10)))
    torch.testing.assert_close(every["reference"], every["loss"])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(DataError, match="zlib attack needs .* found 0 texts for 10 rows"):
        attack_score(of("forget"), "zlib")
    with pytest.raises(DataError, match="needs reference_nll_B"):
        attack_score(of("forget"), "reference")
    with pytest.raises(DataError, match=r"one loss per row \(10\); found the shape \(3,\)"):
        attack_score(of("forget"), "reference", reference_nll_B=torch.zeros(3))
    with pytest.raises(DataError, match="attack must be one of loss, zlib, .* found 'mink'"):
        attack_score(of("forget"), "mink")
    for k in (0.0, 1.5, math.nan):
        with pytest.raises(DataError, match=r"k must be in \(0, 1\]"):
            min_k_score(of("forget"), k)


def test_area_equals_scipy_and_torchmetrics_with_ties() -> None:
    rng = np.random.default_rng(0)
    forget, holdout = rng.integers(0, 6, 40).astype(float), rng.integers(2, 9, 30).astype(float)
    ours = membership_auc(forget, holdout)
    assert ours == pytest.approx(mannwhitneyu(holdout, forget).statistic / (40 * 30))
    labels = torch.tensor([0] * 40 + [1] * 30)
    reference = binary_auroc(torch.tensor(np.concatenate([forget, holdout])) / 10, labels)
    assert ours == pytest.approx(reference.item(), abs=1e-6)
    assert membership_auc(holdout, forget) == pytest.approx(1 - ours)


def test_area_at_the_ends() -> None:
    assert membership_auc([1.0, 2.0], [3.0]) == 1.0
    assert membership_auc([3.0], [1.0, 2.0]) == 0.0
    assert membership_auc([1.0, 1.0], [1.0]) == 0.5
    assert membership_auc([math.inf, 1.0], [2.0, math.inf]) == pytest.approx(0.625)
    assert math.isnan(membership_auc([], [1.0]))
    assert math.isnan(membership_auc([1.0], []))
    assert math.isnan(membership_auc([1.0, math.nan], [1.0]))


def test_privleak_and_relative_difference_equal_open_unlearning() -> None:
    for case in METRICS["privleak"]:
        assert privleak(case["score"], case["ref"]) == pytest.approx(case["agg_value"], abs=1e-6)
    for case in METRICS["rel_diff"]:
        assert rel_diff(case["score"], case["ref"]) == pytest.approx(case["agg_value"], abs=1e-6)


def test_privleak_signs_and_undefined_references() -> None:
    assert privleak(1.0) == -100.0
    assert privleak(0.5) == 0.0
    assert privleak(0.0) == 100.0
    assert math.isnan(privleak(0.3, 1.0))
    assert math.isnan(rel_diff(0.3, 0.0))
