"""One teacher-forced pass: the stock loss, whatever the batch size and however few logits fit into memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import unlearn.evaluation.scoring as scoring
from tests.tiny import tiny_gemma2, tiny_gpt2, tiny_llama
from tests.toys import Toy, toy
from unlearn.data.tokenize import TokenRow
from unlearn.evaluation.scoring import score
from unlearn.functional.scores import token_scores
from unlearn.models.decoder import decoder_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_scores_are_the_stock_ones_of_each_row_alone(made: Toy, make) -> None:  # noqa: ANN001
    lm = make()
    tokens = made.reader().tokens(made.data.evaluation["retain"])
    found = score(lm, tokens, made.reader(5))
    nll = []
    for place, row in enumerate(tokens):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            logits = lm(input_ids=ids).logits[0, row.answer_start - 1 : -1]
        nll.append(cross_entropy(logits, ids[0, row.answer_start :]).item())
        alone = token_scores(logits, ids[0, row.answer_start :], torch.zeros(len(logits), dtype=torch.long), 1)
        mine = found.row_A == place
        torch.testing.assert_close(found.variance_A[mine].float(), alone.variance_A, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.hit_A[mine], alone.hit_A)
        assert torch.equal(found.target_A[mine], alone.target_A)
    np.testing.assert_allclose(found.nll().numpy(), nll, rtol=1e-5)


def test_neither_batch_size_nor_memory_changes_a_score(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = made.reader().tokens(made.data.evaluation["retain"])
    expected = score(made.lm, tokens, made.reader(64)).logprob_A
    for size in (1, 3, 7):
        torch.testing.assert_close(score(made.lm, tokens, made.reader(size)).logprob_A, expected, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(scoring, "LOGITS", 512 * 3)
    torch.testing.assert_close(score(made.lm, tokens, made.reader(7)).logprob_A, expected, rtol=1e-6, atol=1e-6)


def test_one_forward_for_each_batch(made: Toy) -> None:
    tokens = made.reader().tokens(made.data.evaluation["retain"])
    calls: list[int] = []
    handle = decoder_of(made.lm).register_forward_pre_hook(lambda *_: calls.append(1))
    scores = score(made.lm, tokens, made.reader(5), [row.answer for row in made.data.evaluation["retain"]])
    handle.remove()
    assert len(calls) == -(-len({row.ids[:-1] for row in tokens}) // 5)
    assert len(scores.texts) == scores.n_rows == len(tokens)


def test_rows_that_differ_in_their_last_token_are_read_once(made: Toy) -> None:
    tokens = made.reader().tokens(made.data.evaluation["retain"])
    one = tokens[0].ids
    alike = [TokenRow((*one[:-1], last), tokens[0].answer_start, -1, i) for i, last in enumerate((5, 6, 7, 8))]
    calls: list[torch.Size] = []

    def count(module, args, kwargs):  # noqa: ANN001, ANN202
        calls.append(kwargs["input_ids"].shape)

    handle = decoder_of(made.lm).register_forward_pre_hook(count, with_kwargs=True)
    together = score(made.lm, [*alike, tokens[5]], made.reader(8))
    handle.remove()
    assert [shape[0] for shape in calls] == [2]
    for i, row in enumerate([*alike, tokens[5]]):
        torch.testing.assert_close(
            together.logprob_A[together.row_A == i], score(made.lm, [row], made.reader(1)).logprob_A, rtol=1e-6, atol=1e-6
        )
