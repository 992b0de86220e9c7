from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.toys import Toy, toy
from unlearn.methods.gradient_ascent import gradient_ascent_loss


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_by_hand() -> None:
    assert gradient_ascent_loss(torch.tensor([1.0, 2.0, 6.0])).item() == -3.0


def test_is_minus_the_cross_entropy_of_the_stock_model(made: Toy) -> None:
    batch = made.batch()["forget"]
    logits = made.lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1]
    expected = -cross_entropy(logits.flatten(0, 1), batch.labels_BT[:, 1:].flatten(), ignore_index=-100)
    assert made.method("gradient_ascent").loss(made.lm, {"forget": batch}).total.item() == pytest.approx(expected.item(), rel=1e-5)
