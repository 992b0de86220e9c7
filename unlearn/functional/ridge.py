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


class Readout(NamedTuple):
    """``x @ weight + bias``: one score for each class, [N, V]; both fp32."""

    weight_DV: Tensor
    bias_V: Tensor


def fit_readout(x_ND: Tensor, class_N: Tensor, n_classes: int, penalty: float) -> Readout:
    """Ridge classifier on standardised activations: least squares on 1 for a row's class and -1 for the others, intercept not penalised.

    What scikit-learn's ``RidgeClassifier(alpha=penalty)`` after a ``StandardScaler`` computes, as one map of the activations themselves.

    Args:
        x_ND: activations, any precision; the arithmetic is in fp64.
        class_N: classes in [0, n_classes).
        n_classes: how many there are, whether they occur or not.
        penalty: > 0.

    >>> made = fit_readout(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1]), 2, penalty=1e-9)
    >>> (torch.tensor([[0.0], [2.0]]) @ made.weight_DV + made.bias_V).round().tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    x_ND = x_ND.double()
    mean_D, scale_D = x_ND.mean(0), x_ND.std(0, correction=0)
    scale_D = torch.where(scale_D > 0, scale_D, 1.0)
    z_ND = (x_ND - mean_D) / scale_D
    y_NV = 2.0 * torch.nn.functional.one_hot(class_N, n_classes).double() - 1.0
    centred_NV = y_NV - y_NV.mean(0)
    if len(z_ND) < z_ND.shape[1]:
        kernel_NN = z_ND @ z_ND.T + penalty * torch.eye(len(z_ND), dtype=z_ND.dtype, device=z_ND.device)
        weight_DV = z_ND.T @ torch.linalg.solve(kernel_NN, centred_NV)
    else:
        gram_DD = z_ND.T @ z_ND + penalty * torch.eye(z_ND.shape[1], dtype=z_ND.dtype, device=z_ND.device)
        weight_DV = torch.linalg.solve(gram_DD, z_ND.T @ centred_NV)
    weight_DV = weight_DV / scale_D[:, None]
    return Readout(weight_DV.float(), (y_NV.mean(0) - mean_D @ weight_DV).float())
