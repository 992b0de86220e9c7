"""Linear maps from one set of activations to another, in closed form. Tensors in, tensors out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """``x + x @ weight + bias``: what is added to activations [N, D]; both fp32."""

    weight_DD: Tensor
    bias_D: Tensor

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """The mapped activations, in the dtype of ``hidden_ND``."""
        return (hidden_ND + hidden_ND.float() @ self.weight_DD + self.bias_D).to(hidden_ND.dtype)

    def to(self, device: torch.device) -> Affine:
        """The same on another device."""
        return Affine(self.weight_DD.to(device), self.bias_D.to(device))


def fit_change(from_ND: Tensor, to_ND: Tensor, penalty: float) -> Affine:
    """Ridge regression of the difference ``to - from`` on ``from``, with an intercept that is not penalised.

    Minimises ``sum |y - x W - b|^2 + lambda |W|^2`` with ``lambda = penalty * sum |x - mean x|^2 / D``, so that the penalty has no unit. As
    it grows, the map becomes a shift by the mean difference.

    Args:
        from_ND: activations ``[N, D]``, any precision; the arithmetic is in fp64.
        to_ND: what they should become, ``[N, D]``.
        penalty: > 0.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> made = fit_change(x, 3 * x + 1, penalty=1e-9)
    >>> [round(float(v), 4) for v in (made.weight_DD, made.bias_D)]
    [2.0, 1.0]
    """
    x_ND, y_ND = from_ND.double(), to_ND.double() - from_ND.double()
    x_mean_D, y_mean_D = x_ND.mean(0), y_ND.mean(0)
    centred_ND = x_ND - x_mean_D
    gram_DD = centred_ND.T @ centred_ND
    lift = torch.eye(len(gram_DD), dtype=gram_DD.dtype, device=gram_DD.device) * max(float(gram_DD.trace()), 1e-30) * penalty / len(gram_DD)
    weight_DD = torch.linalg.solve(gram_DD + lift, centred_ND.T @ (y_ND - y_mean_D))
    return Affine(weight_DD.float(), (y_mean_D - x_mean_D @ weight_DD).float())
