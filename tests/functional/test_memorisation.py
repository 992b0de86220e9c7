from __future__ import annotations

import pytest
import torch
from scipy.stats import gmean

from tests.oracles.load import column, oracle, stacked
from unlearn.errors import DataError
from unlearn.functional.memorisation import (
    exact_memorisation,
    extraction_strength,
    option_probability,
    probability,
    truth_ratio,
    truth_ratio_score,
)
from unlearn.functional.tokens import answer_logits, row_mean, token_nll

CLOSE = {"rtol": 0, "atol": 1e-6}
METRICS = oracle("metrics")["metrics"]


def row_nll(rows: list[dict]) -> torch.Tensor:
    logits_AV, targets_A, row_A = answer_logits(*stacked(rows))
    return row_mean(token_nll(logits_AV, targets_A), row_A, len(rows))


def answers(*hits: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Rows such as "1011": which tokens are predicted right."""
    targets_A = torch.zeros(sum(map(len, hits)), dtype=torch.long)
    first_choice = torch.tensor([0 if hit == "1" else 1 for row in hits for hit in row], dtype=torch.long)
    row_A = torch.tensor([i for i, row in enumerate(hits) for _ in row], dtype=torch.long)
    return torch.eye(2)[first_choice], targets_A, row_A, len(hits)


@pytest.mark.parametrize("name", ["forget", "edge"])
def test_open_unlearning_numbers(name: str) -> None:
    rows, expected = oracle("metrics")["inputs"][name], METRICS[name]
    logits_AV, targets_A, row_A = answer_logits(*stacked(rows))
    n_rows = len(rows)
    ours = {
        "probability": probability(token_nll(logits_AV, targets_A), row_A, n_rows),
        "exact_memorization": exact_memorisation(logits_AV, targets_A, row_A, n_rows, compat=True),
        "extraction_strength": extraction_strength(logits_AV, targets_A, row_A, n_rows, compat=True),
    }
    for key, values_B in ours.items():
        assert values_B.dtype == torch.float64
        by_index = expected[key]["value_by_index"]
        torch.testing.assert_close(values_B, column(by_index, "prob" if key == "probability" else "score"), **CLOSE)
        assert values_B.mean().item() == pytest.approx(expected[key]["agg_value"], abs=1e-6)


def test_probability_is_the_geometric_mean_over_tokens() -> None:
    p_A = torch.tensor([0.5, 0.2, 0.9, 0.3], dtype=torch.float64)
    values = probability(-p_A.log(), torch.tensor([0, 0, 0, 1]), 2)
    assert values.tolist() == pytest.approx([gmean([0.5, 0.2, 0.9]), 0.3])


@pytest.mark.parametrize(
    ("hits", "share", "strength", "compat"),
    [
        ("1111", 1.0, 1.0, 1.0),
        ("0111", 0.75, 0.75, 2 / 3),
        ("1101", 0.75, 0.25, 1 / 3),
        ("1110", 0.75, 0.0, 1.0),
        ("0000", 0.0, 0.0, 1 / 3),
        ("10", 0.5, 0.0, 1.0),
    ],
)
def test_hand_worked_rows_where_definitions_differ(hits: str, share: float, strength: float, compat: float) -> None:
    batch = answers(hits)
    assert exact_memorisation(*batch).item() == pytest.approx(share)
    assert extraction_strength(*batch).item() == pytest.approx(strength)
    assert extraction_strength(*batch, compat=True).item() == pytest.approx(compat)
    without_last = [int(hit) for hit in hits[:-1]]
    assert exact_memorisation(*batch, compat=True).item() == pytest.approx(sum(without_last) / len(without_last))


def test_rows_do_not_touch_each_other() -> None:
    hits = ("1111", "0001", "1", "0", "0110", "1101")
    together = extraction_strength(*answers(*hits))
    assert together.tolist() == pytest.approx([extraction_strength(*answers(row)).item() for row in hits])
    assert together.tolist() == pytest.approx([1.0, 0.25, 1.0, 0.0, 0.0, 0.25])


def test_end_of_sequence_is_not_scored_when_its_id_is_given() -> None:
    eos = 3
    targets_A = torch.tensor([0, 1, eos])
    logits_AV, row_A = torch.eye(4)[[1, 0, eos]], torch.zeros(3, dtype=torch.long)
    assert extraction_strength(logits_AV, targets_A, row_A, 1).item() == pytest.approx(1 / 3)
    assert extraction_strength(logits_AV, targets_A, row_A, 1, eos_id=eos).item() == 0.0
    assert exact_memorisation(logits_AV, targets_A, row_A, 1, eos_id=eos).item() == 0.0
    ends_in_a_word = torch.tensor([0, 1, 2])
    assert exact_memorisation(torch.eye(4)[[0, 1, 2]], ends_in_a_word, row_A, 1, eos_id=eos).item() == 1.0


def test_rows_without_scored_tokens_are_nan() -> None:
    logits_AV, targets_A, row_A, _ = answers("11", "1")
    for score in (exact_memorisation, extraction_strength):
        values = score(logits_AV, targets_A, row_A, 3)
        assert values.isnan().tolist() == [False, False, True]
        assert score(logits_AV, targets_A, row_A, 2, compat=True).isnan().tolist() == [False, True]
    assert probability(torch.zeros(1), torch.tensor([1]), 2).isnan().tolist() == [True, False]


def test_truth_ratio_from_logits_equals_open_unlearning() -> None:
    inputs = oracle("metrics")["inputs"]
    right_B = row_nll(inputs["paraphrase"])
    wrong_BK = torch.stack([row_nll(rows) for rows in inputs["perturbed"]], dim=1)
    expected = column(METRICS["truth_ratio_closer_to_1_better"]["value_by_index"], "score")[:2]
    torch.testing.assert_close(truth_ratio(right_B, wrong_BK), expected, **CLOSE)


def test_truth_ratio_and_its_aggregators_over_all_rows() -> None:
    right_B = column(METRICS["paraphrase_probability"]["value_by_index"], "avg_loss")
    wrong_BK = column(METRICS["perturbed_probability"]["value_by_index"], "avg_loss")
    ratio_B = truth_ratio(right_B, wrong_BK)
    for ours, theirs in (("forget", "truth_ratio_closer_to_1_better"), ("utility", "truth_ratio_true_better")):
        torch.testing.assert_close(ratio_B, column(METRICS[theirs]["value_by_index"], "score"), **CLOSE)
        assert truth_ratio_score(ratio_B, ours).mean().item() == pytest.approx(METRICS[theirs]["agg_value"], abs=1e-6)
    share = METRICS["truth_ratio_prob_mean"]
    torch.testing.assert_close(truth_ratio_score(ratio_B, "probability"), column(share["value_by_index"], "score"), **CLOSE)
    options = METRICS["probability_w_options"]
    torch.testing.assert_close(option_probability(right_B, wrong_BK), column(options["value_by_index"], "prob"), **CLOSE)


def test_missing_wrong_answers_are_left_out() -> None:
    right_B, wrong_BK = torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 4.0, torch.nan], [1.0, torch.nan, torch.nan]])
    torch.testing.assert_close(truth_ratio(right_B, wrong_BK), torch.tensor([-2.0, 1.0]).exp())
    full = option_probability(right_B[:1], wrong_BK[:1, :2])
    torch.testing.assert_close(option_probability(right_B, wrong_BK)[:1], full)


def test_scores_stay_in_range_at_extreme_ratios() -> None:
    ratio_B = torch.tensor([0.0, 1.0, torch.inf])
    assert truth_ratio_score(ratio_B, "forget").tolist() == [0.0, 1.0, 0.0]
    assert truth_ratio_score(ratio_B, "utility").tolist() == [1.0, 0.0, 0.0]
    assert truth_ratio_score(ratio_B, "probability").tolist() == [1.0, 0.5, 0.0]


def test_unknown_score_is_named() -> None:
    with pytest.raises(DataError, match=r"one of forget, utility, probability; found 'utilty'. Did you mean 'utility'\?"):
        truth_ratio_score(torch.ones(1), "utilty")
