from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.toys import Toy, toy
from unlearn.data.tokenize import TokenRow
from unlearn.errors import DataError
from unlearn.evaluation.gradnorm import gradient_norms


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def by_backward(made: Toy, row: TokenRow) -> list[torch.Tensor]:
    """Gradient of the stock loss, weight by weight."""
    lm = copy.deepcopy(made.lm)
    for weight in lm.parameters():
        weight.requires_grad_(True)
    ids = torch.tensor([row.ids])
    labels = ids.clone()
    labels[:, : row.answer_start] = -100
    lm(input_ids=ids, labels=labels).loss.backward()
    return [weight.grad for weight in lm.parameters() if weight.grad is not None]


def test_norms_are_those_of_the_stock_loss(made: Toy) -> None:
    tokens = made.reader().tokens(made.data.evaluation["retain"][:3])
    gradients = [by_backward(made, row) for row in tokens]
    for p in (1.0, 2.0, float("inf")):
        whole = [torch.cat([g.flatten() for g in row]).norm(p).item() for row in gradients]
        each = [np.mean([g.norm(p).item() for g in row]) for row in gradients]
        np.testing.assert_allclose(gradient_norms(made.lm, tokens, p), whole, rtol=1e-4)
        np.testing.assert_allclose(gradient_norms(made.lm, tokens, p, compat=True), each, rtol=1e-4)


def test_the_model_is_left_as_it_was(made: Toy) -> None:
    lm = copy.deepcopy(made.lm).train()
    first = next(lm.parameters())
    first.requires_grad_(True)
    before = [weight.clone() for weight in lm.parameters()]
    gradient_norms(lm, made.reader().tokens(made.data.evaluation["retain"][:1]))
    assert lm.training
    assert [weight.requires_grad for weight in lm.parameters()] == [True] + [False] * (len(before) - 1)
    assert all(weight.grad is None for weight in lm.parameters())
    assert all(torch.equal(a, b) for a, b in zip(lm.parameters(), before, strict=True))


def test_rows_are_independent_and_no_grad_around_does_not_matter(made: Toy) -> None:
    tokens = made.reader().tokens(made.data.evaluation["forget"][:3])
    with torch.no_grad():
        together = gradient_norms(made.lm, tokens)
    np.testing.assert_allclose(together, [gradient_norms(made.lm, [row])[0] for row in tokens], rtol=1e-6)
    assert gradient_norms(made.lm, []).shape == (0,)


def test_a_learnt_row_has_a_smaller_gradient(made: Toy) -> None:
    lm = copy.deepcopy(made.lm)
    tokens = made.reader().tokens(made.data.evaluation["forget"][:1])
    start = gradient_norms(lm, tokens)[0]
    for weight in lm.parameters():
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(lm.parameters(), lr=1e-2)
    ids = torch.tensor([tokens[0].ids])
    for _ in range(20):
        optimizer.zero_grad()
        lm(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert gradient_norms(lm, tokens)[0] < start / 3


@pytest.mark.parametrize("p", [0.0, -1.0, float("nan")])
def test_order_of_the_norm_is_checked(made: Toy, p: float) -> None:
    with pytest.raises(DataError, match="p must be at least 1"):
        gradient_norms(made.lm, [], p)
