import numpy as np
import pytest
import torch

from unlearn.errors import DataError
from unlearn.functional.rounding import from_groups, round_groupwise, to_groups


def test_a_group_worked_by_hand():
    """4 bits: 15 values from -7 s to 7 s. First group: s = 14 / 7 = 2; second: s = 0.7 / 7 = 0.1; the rest, shorter: s = 3 / 7."""
    weight = torch.tensor([[14.0, 2.9, -3.1, 1.0, 0.7, -0.26, 0.24, 0.04, 3.0, -1.0]])
    expected = [14.0, 2.0, -4.0, 0.0, 0.7, -0.3, 0.2, 0.0, 3.0, -2 * 3 / 7]  # 1 / 2 is a half, which goes to the even 0
    assert round_groupwise(weight, 4, 4)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("bits", "size", "shape"), [(8, 64, (3, 128)), (4, 64, (3, 100)), (4, 16, (5, 7)), (2, 3, (4, 9))])
def test_groups_lie_along_the_inputs_and_share_one_scale(bits, size, shape):
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.empty_like(weight)
    for out in range(shape[0]):
        for start in range(0, shape[1], size):
            part = weight[out, start : start + size]
            step = np.abs(part).max() / (2 ** (bits - 1) - 1)
            expected[out, start : start + size] = np.rint(part / step) * step
    found = round_groupwise(torch.tensor(weight), bits, size)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(round_groupwise(found, bits, size).numpy(), found.numpy(), atol=1e-6)  # the grid is its own rounding


def test_a_change_of_less_than_half_a_step_is_undone():
    generator = torch.Generator().manual_seed(0)
    original = round_groupwise(torch.randn(8, 64, generator=generator), 4, 64)
    step = original.abs().amax(1, keepdim=True) / 7
    change = (torch.rand(8, 64, generator=generator) - 0.5) * 0.9 * step
    moved = torch.where(original.abs() == original.abs().amax(1, keepdim=True), original, original + change)
    assert (moved - original).abs().max() > 0.1
    torch.testing.assert_close(round_groupwise(moved, 4, 64), original)


def test_zeros_stay_and_the_dtype_is_kept():
    assert round_groupwise(torch.zeros(2, 5), 4, 2).tolist() == [[0.0] * 5] * 2
    assert round_groupwise(torch.ones(2, 5, dtype=torch.bfloat16), 8, 2).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [1, 3, 5, 99])
def test_groups_come_back_as_they_were(size):
    weight = torch.arange(10.0).reshape(2, 5)
    assert torch.equal(from_groups(to_groups(weight, size), (2, 5)), weight)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(DataError, match="2 to 8 bits"):
        round_groupwise(torch.ones(1, 1), bits, 1)
