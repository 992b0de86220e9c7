"""Training a copy of the model on a few rows, as somebody would who has its weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from unlearn.data.tokenize import TokenRow, collate
from unlearn.functional.tokens import token_mean, token_nll
from unlearn.models.decoder import device_of
from unlearn.models.forward import forward
from unlearn.types import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_lora(lm: PreTrainedModel, rank: int, alpha: float) -> Any:
    """``lm`` with fresh LoRA adapters on all of its linear layers but the output head (peft's ``all-linear``), everything else frozen."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls what transformers has renamed
        return get_peft_model(lm, settings)


def fine_tune(lm: Any, rows: Sequence[TokenRow], pad_id: int, *, lr: float, at: Sequence[int], batch_size: int, seed: int) -> Iterator[int]:
    """Train every weight that requires a gradient on the rows' answers; yields each step of ``at`` when it is done.

    AdamW without weight decay at a constant learning rate, gradients clipped to norm 1; rows in a new random order every epoch.

    Args:
        lm: a model that may be changed; where no weight requires a gradient, all are trained.
        rows: with answers.
        pad_id: padding token.
        lr: learning rate, > 0.
        at: optimiser steps, ascending, >= 1.
        batch_size: rows of a step, >= 1.
        seed: seed of the order, and of LoRA's initial weights where the caller made them under it.
    """
    if not any(p.requires_grad for p in lm.parameters()):
        lm.requires_grad_(True)
    weights = [p for p in lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    order, device = _orders(len(rows), batch_size, seed), device_of(lm)
    for step in range(1, max(at) + 1):
        batch = TokenBatch(*(t.to(device) for t in collate([rows[i] for i in next(order)], pad_id)))
        out = forward(lm, batch)
        loss = token_mean(token_nll(out.logits_AV, out.targets_A))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step in at:
            yield step


def _orders(n: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Places of the rows of each step, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        places = torch.randperm(n, generator=generator).tolist()
        yield from (places[start : start + batch_size] for start in range(0, n, batch_size))
