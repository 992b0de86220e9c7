from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from tests.oracles.load import column, oracle, stacked
from unlearn.errors import DataError
from unlearn.functional import scores as module
from unlearn.functional.memorisation import exact_memorisation, extraction_strength, probability
from unlearn.functional.scores import TokenScores, join_scores, token_scores
from unlearn.functional.tokens import answer_logits, token_nll

CLOSE = {"rtol": 0, "atol": 1e-6}
METRICS = oracle("metrics")["metrics"]


def of(name: str, rows: slice = slice(None), texts: tuple[str, ...] = ()) -> TokenScores:
    chosen = oracle("metrics")["inputs"][name][rows]
    return token_scores(*answer_logits(*stacked(chosen)), len(chosen), texts)


@pytest.mark.parametrize("name", ["forget", "holdout", "edge"])
def test_one_pass_gives_open_unlearning_numbers(name: str) -> None:
    scores, expected = of(name), METRICS[name]
    for ours, theirs, key in (
        (scores.nll(), "probability", "avg_loss"),
        (scores.probability(), "probability", "prob"),
        (scores.exact_memorisation(compat=True), "exact_memorization", "score"),
        (scores.extraction_strength(compat=True), "extraction_strength", "score"),
    ):
        torch.testing.assert_close(ours, column(expected[theirs]["value_by_index"], key), **CLOSE)
    for row, logprobs in enumerate(expected["tokenwise_logprobs"]):
        found = scores.logprob_A[scores.row_A == row][: len(logprobs)]
        torch.testing.assert_close(found, torch.tensor(logprobs, dtype=torch.float64), **CLOSE)


def test_methods_equal_the_functions_of_logits() -> None:
    logits_AV, targets_A, row_A = answer_logits(*stacked(oracle("metrics")["inputs"]["forget"]))
    scores, eos = of("forget"), int(targets_A[3])
    torch.testing.assert_close(scores.probability(), probability(token_nll(logits_AV, targets_A), row_A, 10))
    assert torch.equal(scores.exact_memorisation(eos), exact_memorisation(logits_AV, targets_A, row_A, 10, eos))
    assert torch.equal(scores.extraction_strength(eos), extraction_strength(logits_AV, targets_A, row_A, 10, eos))


def test_moments_equal_those_of_the_distribution_even_with_impossible_tokens() -> None:
    logits_AV = torch.randn(700, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits_AV[::3, 4] = -torch.inf
    found = token_scores(logits_AV, torch.zeros(700, dtype=torch.long), torch.arange(700), 700)
    p_AV = logits_AV.softmax(-1)
    assert 2 * module.CHUNK < 700
    torch.testing.assert_close(found.mean_A, -Categorical(logits=logits_AV.clamp(min=-1e4)).entropy())
    for a in range(0, 700, 97):
        possible = p_AV[a] > 0
        values, weights = p_AV[a][possible].log(), p_AV[a][possible]
        variance = float(((values - (weights * values).sum()) ** 2 * weights).sum())
        assert found.variance_A[a].item() == pytest.approx(variance, abs=1e-12)


def test_a_certain_and_an_even_model_have_no_variance() -> None:
    sure = token_scores(torch.tensor([[800.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 0]), torch.tensor([0, 1]), 2)
    assert sure.variance_A.tolist() == [0.0, 0.0]
    assert sure.mean_A.tolist() == pytest.approx([0.0, -0.693147])
    assert sure.logprob_A[0].item() == -800.0


def test_half_precision_is_scored_in_single() -> None:
    scores = token_scores(torch.zeros(2, 4, dtype=torch.bfloat16), torch.tensor([0, 1]), torch.tensor([0, 1]), 2)
    assert scores.logprob_A.dtype == scores.nll().dtype == torch.float32


def test_batches_in_any_order_join_to_the_whole() -> None:
    texts = tuple("abcdefghij")
    whole = of("forget", texts=texts)
    places = [[7, 2, 9], [0, 1, 3, 4], [8, 6, 5]]
    rows = oracle("metrics")["inputs"]["forget"]
    parts = [token_scores(*answer_logits(*stacked([rows[i] for i in index])), len(index), [texts[i] for i in index]) for index in places]
    joined = join_scores(parts, places)
    for name in ("logprob_A", "mean_A", "variance_A", "hit_A", "target_A", "row_A"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
    assert joined.texts == texts
    assert joined.n_rows == 10
    behind = join_scores([of("forget", slice(0, 4)), of("forget", slice(4, 10))])
    torch.testing.assert_close(behind.logprob_A, whole.logprob_A)
    assert behind.texts == ()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"texts must be empty or one per row \(10\); found 1"):
        of("forget", texts=("a",))
    with pytest.raises(DataError, match="at least one batch; found none"):
        join_scores([])
    with pytest.raises(DataError, match="name each of the 10 rows once"):
        join_scores([of("forget")], [[0, 0, *range(2, 10)]])
    with pytest.raises(DataError, match="name each of the 4 rows once"):
        join_scores([of("forget", slice(0, 2)), of("forget", slice(2, 4))], [[0, 1, 2], [3]])
    with pytest.raises(DataError, match="in all batches or in none; found them in 1 of 2"):
        join_scores([of("forget", slice(0, 1), ("a",)), of("forget", slice(1, 2))])
