"""Rounding of weights to a few bits, as storing a model in small integers does. Tensors in, tensors out.

Shapes: O outputs and I inputs of a linear map, G groups, S weights of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.errors import DataError


def to_groups(weight_OI: Tensor, size: int) -> Tensor:
    """Weights in groups of neighbours along the input dimension, ``[G, S]``; the last group of each output is filled up with zeros.

    Args:
        weight_OI: weights ``[O, I]``.
        size: weights of a group, >= 1; I at most, so that a short row is one group.

    >>> to_groups(torch.tensor([[1.0, 2.0, 3.0]]), 2)
    tensor([[1., 2.],
            [3., 0.]])
    """
    size = min(size, weight_OI.shape[1])
    return F.pad(weight_OI, (0, -weight_OI.shape[1] % size)).reshape(-1, size)


def from_groups(groups_GS: Tensor, shape: tuple[int, int]) -> Tensor:
    """What ``to_groups`` took apart, ``[O, I]`` of the given shape.

    >>> from_groups(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), (1, 3))
    tensor([[1., 2., 3.]])
    """
    return groups_GS.reshape(shape[0], -1)[:, : shape[1]]


def round_groupwise(weight_OI: Tensor, bits: int, size: int) -> Tensor:
    """Weights rounded to the nearest of ``2 ** bits - 1`` evenly spaced values around 0, whose largest is the group's largest weight.

    ``q = round(w / s)``, ``s = max |w| / (2 ** (bits - 1) - 1)`` over the group; what comes back is ``q * s``, in the dtype of the weights
    (the arithmetic is in fp32). Halves go to the even neighbour; a group of zeros stays.

    Args:
        weight_OI: weights ``[O, I]``.
        bits: in [2, 8].
        size: weights that share a scale, neighbours along the input dimension, >= 1; I at most.

    Raises:
        DataError: ``bits`` is out of range.

    >>> round_groupwise(torch.tensor([[7.0, 2.4, -2.6, 0.0, 100.0]]), 4, 4)
    tensor([[  7.,   2.,  -3.,   0., 100.]])
    """
    if not 2 <= bits <= 8:
        raise DataError(f"Weights must be rounded to 2 to 8 bits; found {bits}.")
    groups_GS = to_groups(weight_OI.float(), size)
    scale_G1 = groups_GS.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded_GS = torch.round(groups_GS / torch.where(scale_G1 > 0, scale_G1, 1.0)) * scale_G1
    return from_groups(rounded_GS, (weight_OI.shape[0], weight_OI.shape[1])).to(weight_OI.dtype)
