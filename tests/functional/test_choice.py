from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from unlearn.errors import DataError
from unlearn.functional.choice import choice_correct, choice_prompt, letter_scores, likelihood_scores


def test_prompt_has_one_line_for_each_option() -> None:
    lines = choice_prompt("Who?", ["Ann", "Bob", "Cem", "Dan"]).split("\n")
    assert lines == ["Who?", "A. Ann", "B. Bob", "C. Cem", "D. Dan", "Answer:"]
    for options in ([], ["one"], ["x"] * 27):
        with pytest.raises(DataError, match=f"options must be 2 to 26 answers; found {len(options)}"):
            choice_prompt("Who?", options)


def test_correct_equals_the_first_choice_where_nothing_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    scores_BK, answer_B = torch.randn(200, 4, generator=generator), torch.randint(0, 4, (200,), generator=generator)
    expected = accuracy_score(answer_B.numpy(), np.argmax(scores_BK.numpy(), axis=1))
    assert choice_correct(scores_BK, answer_B).mean().item() == pytest.approx(expected)


def test_a_model_without_preference_is_at_chance_wherever_the_answers_stand() -> None:
    for answer in range(4):
        assert choice_correct(torch.zeros(3, 4), torch.full((3,), answer)).tolist() == [0.25] * 3
    partly = torch.tensor([[2.0, 2.0, 1.0, -torch.inf]])
    assert [choice_correct(partly, torch.tensor([i])).item() for i in range(4)] == [0.5, 0.5, 0.0, 0.0]


def test_a_broken_model_is_wrong_and_does_not_vanish() -> None:
    scores_BK = torch.tensor([[torch.nan] * 2, [torch.nan, 1.0], [0.0, 1.0]])
    assert choice_correct(scores_BK, torch.tensor([0, 1, 1])).tolist() == [0.0, 0.0, 1.0]


def test_letters_are_read_in_the_order_of_their_ids_and_short_questions_have_fewer() -> None:
    logits_BV = torch.tensor([[5.0, 1.0, 2.0, 3.0, 4.0]] * 2, dtype=torch.bfloat16)
    scores_BK = letter_scores(logits_BV, [3, 1, 4], torch.tensor([3, 2]))
    assert scores_BK.dtype == torch.float32
    assert scores_BK.tolist() == [[3.0, 1.0, 4.0], [3.0, 1.0, -torch.inf]]
    assert letter_scores(logits_BV, [3, 1, 4]).tolist() == [[3.0, 1.0, 4.0]] * 2


def test_length_turns_the_choice_between_a_short_and_a_long_option() -> None:
    nll_BK, answer_B = torch.tensor([[4.0, 6.0]]), torch.tensor([1])
    assert choice_correct(likelihood_scores(nll_BK), answer_B).item() == 0.0
    assert choice_correct(likelihood_scores(nll_BK, torch.tensor([[1, 3]])), answer_B).item() == 1.0
    missing = likelihood_scores(torch.tensor([[torch.nan, 6.0]]), torch.tensor([[0, 3]]))
    assert missing.tolist() == [[-torch.inf, -2.0]]


def test_an_answer_that_is_no_option_is_refused() -> None:
    for wrong in (-1, 2):
        with pytest.raises(DataError, match=rf"answer_B must be in \[0, 2\); found {wrong}"):
            choice_correct(torch.zeros(2, 2), torch.tensor([0, wrong]))
    assert choice_correct(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)).shape == (0,)
