"""Gradient norms of single rows: the membership attack that needs a backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from unlearn.data.tokenize import TokenRow, collate
from unlearn.errors import DataError
from unlearn.functional.tokens import token_mean, token_nll
from unlearn.models.decoder import device_of, in_eval_mode
from unlearn.models.forward import forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def _differentiable(lm: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Every floating-point parameter with gradients on, modules in eval mode; afterwards all is as it was."""
    weights = [weight for weight in lm.parameters() if weight.is_floating_point()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with in_eval_mode(lm), torch.enable_grad():
            yield weights
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _norm(gradients: Sequence[Tensor | None], p: float, compat: bool) -> float:
    each = torch.stack([gradient.float().norm(p) for gradient in gradients if gradient is not None])
    return float(each.mean() if compat else each.norm(p))


def gradient_norms(lm: PreTrainedModel, tokens: Sequence[TokenRow], p: float = 2.0, compat: bool = False) -> np.ndarray:
    """Norm of the gradient of each row's loss (mean nats per labelled token) by all weights ``[rows]``, >= 0; low for a member.

    One forward and one backward pass per row; gradients are never stored in the weights, and frozen weights are frozen again afterwards.

    Args:
        lm: the model; measured in eval mode, so without dropout.
        tokens: rows, each with at least one labelled token.
        p: order of the norm, >= 1 or inf.
        compat: the mean over weight tensors of each tensor's norm, as open-unlearning (commit d3d7cf9) takes it, in place of the norm of
            the whole gradient. There the model is in train mode, which differs where it has dropout.

    Raises:
        DataError: ``p`` is out of range.
    """
    if not p >= 1:
        raise DataError(f"p must be at least 1; found {p}.")
    norms, device = np.zeros(len(tokens)), device_of(lm)
    with _differentiable(lm) as weights:
        for i, row in enumerate(tokens):
            cpu_batch = collate([row], pad_id=0)
            out = forward(lm, type(cpu_batch)(*(t.to(device) for t in cpu_batch)))
            loss = token_mean(token_nll(out.logits_AV, out.targets_A))
            norms[i] = _norm(torch.autograd.grad(loss, weights, allow_unused=True), p, compat)
    return norms
