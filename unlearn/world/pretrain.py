"""Training a small causal language model from random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from unlearn.world.progress import steps_bar


def tiny_llama(
    tokenizer: PreTrainedTokenizerBase, *, blocks: int, width: int, heads: int, max_length: int, seed: int, init_std: float = 0.02
) -> LlamaForCausalLM:
    """A Llama with random weights drawn from ``seed``, tied embeddings and feed-forward layers of 4 * width.

    ``init_std`` is the standard deviation of the weights: at a width of 128 the usual 0.02 stays on a plateau much longer than 0.035.
    The global random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        initializer_range=init_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrain(
    lm: PreTrainedModel,
    batches: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    beta2: float = 0.95,
    clip: float = 1.0,
    pad_id: int | None = None,
    title: str = "Training the language model",
    progress: bool = True,
) -> float:
    """Train all weights of ``lm`` in place on next-token prediction with AdamW and a one-cycle learning rate (Smith and Topin, 1708.07120).

    Args:
        lm: a causal language model; it is left in eval mode.
        batches: gives the token ids of a step, LongTensor [B, T]; every token but the first of a row is predicted.
        steps: optimiser steps, >= 1.
        lr: peak learning rate, reached after the share ``warmup`` of the steps.
        warmup: share of the steps in which the learning rate rises, in (0, 1).
        weight_decay: AdamW weight decay.
        beta2: AdamW's second beta; the first falls from 0.95 to 0.85 as the learning rate rises, and back.
        clip: largest gradient norm.
        pad_id: token that is not predicted; None where rows have no padding (on the right).
        title: name of the progress bar.
        progress: whether a progress bar may be shown.

    Returns:
        Mean loss of the last tenth of the steps, in nats per token.
    """
    device = next(lm.parameters()).device
    optimiser = torch.optim.AdamW(lm.parameters(), lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=True)
    planned = max(steps, 3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=planned, pct_start=max(warmup, 2 / planned))
    losses: list[Tensor] = []
    lm.train()
    with torch.enable_grad(), steps_bar(title, steps, show=progress) as advance:
        for step in range(steps):
            ids = batches(step).to(device)
            mask = None if pad_id is None else (ids != pad_id).long()
            logits = lm(input_ids=ids[:, :-1], attention_mask=None if mask is None else mask[:, :-1], use_cache=False).logits
            ignore = -100 if pad_id is None else pad_id
            loss = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=ignore)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lm.parameters(), clip)
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
            advance()
    lm.eval()
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())
