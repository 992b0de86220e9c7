from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.oracles.load import column, oracle, stacked
from unlearn.errors import DataError
from unlearn.functional.tokens import (
    answer_logits,
    answer_positions,
    answer_targets,
    gather_positions,
    row_count,
    row_mean,
    row_sum,
    token_mean,
    token_nll,
    upcast,
)
from unlearn.types import NO_ENTITY

CLOSE = {"rtol": 0, "atol": 1e-6}


def test_positions_predict_the_labelled_tokens() -> None:
    labels_BT = torch.tensor([[-100, 5, 6, -100], [-100, -100, -100, 7], [-100, -100, -100, -100]])
    row_A, pos_A = answer_positions(labels_BT)
    assert row_A.tolist() == [0, 0, 1]
    assert pos_A.tolist() == [0, 1, 2]
    assert answer_targets(labels_BT).tolist() == [5, 6, 7]


def test_label_at_index_zero_is_ignored() -> None:
    labels_BT = torch.tensor([[3, 4]])
    assert [x.tolist() for x in answer_positions(labels_BT)] == [[0], [0]]
    assert answer_targets(labels_BT).tolist() == [4]


def test_batch_loss_is_the_shifted_cross_entropy_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(3, 6, 11, generator=generator, dtype=torch.float64)
    labels_BT = torch.randint(0, 11, (3, 6), generator=generator)
    labels_BT[0, :3], labels_BT[2, 4:] = -100, -100
    reference = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=-100)
    logits_AV, targets_A, _ = answer_logits(logits_BTV, labels_BT)
    torch.testing.assert_close(token_mean(token_nll(logits_AV, targets_A)), reference)


def test_tokenwise_log_probabilities_equal_open_unlearning_up_to_its_dropped_last_token() -> None:
    for name in ("forget", "edge"):
        logits_AV, targets_A, row_A = answer_logits(*stacked(oracle("metrics")["inputs"][name]))
        nll_A = token_nll(logits_AV, targets_A)
        for row, expected in enumerate(oracle("metrics")["metrics"][name]["tokenwise_logprobs"]):
            torch.testing.assert_close(-nll_A[row_A == row][:-1], torch.tensor(expected, dtype=torch.float64), **CLOSE)


def test_row_mean_equals_open_unlearning_average_loss() -> None:
    logits_AV, targets_A, row_A = answer_logits(*stacked(oracle("metrics")["inputs"]["forget"]))
    expected = column(oracle("metrics")["metrics"]["forget"]["probability"]["value_by_index"], "avg_loss")
    torch.testing.assert_close(row_mean(token_nll(logits_AV, targets_A), row_A, 10), expected, **CLOSE)


def test_nll_is_computed_in_full_precision() -> None:
    logits_AV = torch.tensor([[1.0, 2.0, 4.0]])
    assert token_nll(logits_AV.bfloat16(), torch.tensor([1])).dtype == torch.float32
    torch.testing.assert_close(token_nll(logits_AV.half(), torch.tensor([1])), token_nll(logits_AV, torch.tensor([1])))
    assert token_nll(logits_AV.double(), torch.tensor([1])).dtype == torch.float64
    assert upcast(logits_AV) is logits_AV


def test_row_reductions_match_a_loop_and_pass_gradients() -> None:
    x_A = torch.tensor([1.0, 4.0, 10.0, 3.0], dtype=torch.float64, requires_grad=True)
    row_A = torch.tensor([0, 0, 2, 2])
    assert row_sum(x_A, row_A, 3).tolist() == [5.0, 0.0, 13.0]
    assert row_count(row_A, 4).tolist() == [2, 0, 2, 0]
    means_B = row_mean(x_A, row_A, 3)
    assert means_B[[0, 2]].tolist() == [2.5, 6.5]
    assert means_B[1].isnan()
    means_B[[0, 2]].sum().backward()
    assert x_A.grad is not None
    assert x_A.grad.tolist() == [0.5, 0.5, 0.5, 0.5]


def test_gather_takes_one_position_of_each_row() -> None:
    hidden_BTD = torch.arange(24.0).view(2, 3, 4)
    torch.testing.assert_close(gather_positions(hidden_BTD, torch.tensor([2, 0])), torch.stack([hidden_BTD[0, 2], hidden_BTD[1, 0]]))


@pytest.mark.parametrize("position", [NO_ENTITY, 3])
def test_gather_refuses_positions_outside_the_row(position: int) -> None:
    with pytest.raises(DataError, match=rf"in \[0, 3\), so leave out rows without an entity; found {position}"):
        gather_positions(torch.zeros(2, 3, 4), torch.tensor([1, position]))


def losses() -> dict:
    return oracle("losses")["losses"]


def answer_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logits_AV, targets_A, _ = answer_logits(logits_BTV, labels_BT)
    return token_mean(token_nll(logits_AV, targets_A))


def test_gradient_ascent_value_and_gradient() -> None:
    logits_BTV, labels_BT = stacked(oracle("losses")["inputs"]["forget"])
    loss = -answer_loss(logits_BTV.requires_grad_(), labels_BT)
    loss.backward()
    expected = losses()["GradAscent"]
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    torch.testing.assert_close(logits_BTV.grad[0], torch.tensor(expected["grad_forget_row0"], dtype=torch.float64), **CLOSE)
    assert logits_BTV.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_forget"], abs=1e-6)


def test_gradient_difference_value_and_gradient() -> None:
    forget_BTV, forget_BT = stacked(oracle("losses")["inputs"]["forget"])
    retain_BTV, retain_BT = stacked(oracle("losses")["inputs"]["holdout"])
    loss = answer_loss(retain_BTV.requires_grad_(), retain_BT) - answer_loss(forget_BTV.requires_grad_(), forget_BT)
    loss.backward()
    expected = losses()["GradDiff_NLL"]
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    assert forget_BTV.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_forget"], abs=1e-6)
    assert retain_BTV.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_retain"], abs=1e-6)
