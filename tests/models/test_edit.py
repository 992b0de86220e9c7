from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_batch, tiny_gpt2, tiny_llama
from unlearn.errors import ModelError
from unlearn.models.capture import capture
from unlearn.models.edit import edited


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("layer", [-1, 0, 2])
def test_the_next_block_sees_the_edited_output(make, layer) -> None:  # noqa: ANN001
    lm, batch = make(), tiny_batch(rows=2, length=12)
    with torch.no_grad():
        before = capture(lm, batch, layer)
        with edited(lm, layer, lambda h: h + 1.0):
            torch.testing.assert_close(capture(lm, batch, layer), before + 1.0)
            above = capture(lm, batch, layer + 1)
        assert not torch.allclose(above, capture(lm, batch, layer + 1))
        torch.testing.assert_close(capture(lm, batch, layer), before)


def test_replacing_an_output_by_that_of_another_run_gives_the_other_run() -> None:
    lm = tiny_llama()
    a, b = tiny_batch(rows=2, length=12, seed=0, shortest=12), tiny_batch(rows=2, length=12, seed=1, shortest=12)
    with torch.no_grad():
        wanted, patch = capture(lm, b, 3), capture(lm, b, 1)
        with edited(lm, 1, lambda h: patch):
            torch.testing.assert_close(capture(lm, a, 3), wanted)


def test_layer_out_of_range() -> None:
    with pytest.raises(ModelError, match="found 4"), edited(tiny_llama(layers=4), 4, lambda h: h):
        pass
