"""One pass through the language model: logits where answers are predicted, block outputs on the way; and generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unlearn.errors import ModelError
from unlearn.functional.tokens import answer_positions, answer_targets
from unlearn.models.capture import tapped
from unlearn.models.decoder import base_of, decoder_of, device_of, evaluating, output_head, text_config
from unlearn.types import TokenBatch


class Forward(NamedTuple):
    """What one pass gives.

    ``logits_AV`` predict ``targets_A`` (in the model's dtype), ``row_A`` are the batch rows they belong to, ``hidden`` the block outputs
    [B, T, D] by layer, ``final_AD`` the hidden states after the final norm from which the logits come.
    """

    logits_AV: Tensor
    targets_A: Tensor
    row_A: Tensor
    hidden: dict[int, Tensor]
    final_AD: Tensor


@contextmanager
def _head_sees(lm: nn.Module, row_A: Tensor, pos_A: Tensor) -> Iterator[list[Tensor]]:
    """Hand the output head only the given positions, as one row; the list receives them.

    The model's own forward does the rest, so that whatever its family does to logits is done here too.
    """
    seen: list[Tensor] = []

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0][row_A, pos_A])
        return (seen[-1][None],)

    handle = output_head(lm).register_forward_pre_hook(gather, prepend=True)
    try:
        yield seen
    finally:
        handle.remove()


def forward(lm: nn.Module, batch: TokenBatch, layers: Sequence[int] = ()) -> Forward:
    """Run the whole model once; the output head sees the answer positions only.

    Args:
        lm: the language model.
        batch: tokens, padded on the right, with labels.
        layers: blocks whose output [B, T, D] is wanted as well; -1 for the input of block 0.

    Raises:
        ModelError: a layer is out of range, or the model calls its head in a way that cannot be followed.
    """
    row_A, pos_A = answer_positions(batch.labels_BT)
    with tapped(lm, layers) as hidden, _head_sees(lm, row_A, pos_A) as seen:
        output: Any = base_of(lm)(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False, return_dict=True)
    if len(seen) != 1 or output.logits.shape[:2] != (1, len(row_A)):
        raise ModelError(
            f"{type(base_of(lm)).__name__} must call its output head once, on hidden states [B, T, D]; found {len(seen)} calls."
        )
    return Forward(output.logits[0], answer_targets(batch.labels_BT), row_A, hidden, seen[0])


def up_to_answers(batch: TokenBatch) -> TokenBatch:
    """The batch as far as it has to be read: without the columns after which no label is predicted and no entity ends.

    Nothing comes back from them in a causal model. Labels keep their columns, so ``forward`` gives the same logits; block outputs are
    shorter.
    """
    _, pos_A = answer_positions(batch.labels_BT)
    width = 1 + max(int(pos_A.max()) if len(pos_A) else 0, int(batch.entity_end_B.max()) if len(batch.entity_end_B) else 0)
    return batch._replace(input_ids_BT=batch.input_ids_BT[:, :width], attention_mask_BT=batch.attention_mask_BT[:, :width])


def final_hidden(lm: nn.Module, batch: TokenBatch) -> Tensor:
    """What the output head would read, [B, T, D], after the final norm; ``unlearn.models.decoder.head`` makes logits of it."""
    output: Any = decoder_of(lm)(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False, return_dict=True)
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD


def _stop_ids(lm: nn.Module, tokenizer: Any, extra: Sequence[int]) -> list[int]:
    own: Any = getattr(getattr(base_of(lm), "generation_config", None), "eos_token_id", None)
    ids = {*extra, tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else (own,))}
    return sorted(int(i) for i in ids if i is not None)


def _room(lm: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """``max_new_tokens``, or fewer where the model's context ends."""
    limit = getattr(text_config(lm), "max_position_embeddings", None)
    longest = max(map(len, prompts))
    if limit is None:
        return max_new_tokens
    if longest >= limit:
        raise ModelError(f"A prompt must be shorter than the model's context of {limit} tokens; found {longest}.")
    return min(max_new_tokens, limit - longest)


def _generate_batch(base: Any, prompts: Sequence[Sequence[int]], pad_id: int, config: Any) -> list[list[int]]:
    """New tokens of prompts that share one batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    device = device_of(base)
    output = base.generate(ids.to(device), attention_mask=mask.to(device), generation_config=config, synced_gpus=False)
    return output[:, longest:].tolist()


def gpus_at_work() -> range:
    """Numbers of the GPUs whose random state a process has; none while it computes on the CPU only, which must not start one."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


@contextmanager
def _drawing(temperature: float, seed: int) -> Iterator[dict[str, Any]]:
    """How the next token is chosen, as options of a ``GenerationConfig``; draws inside leave the global random state alone."""
    if not temperature:
        yield {"do_sample": False}
        return
    with torch.random.fork_rng(devices=gpus_at_work()):
        torch.manual_seed(seed)
        yield {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def generate(
    lm: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop_ids: Sequence[int] = (),
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Continuations, greedy unless a temperature is given, with a key-value cache; the model's own sampling defaults have no say.

    Prompts of similar length share a batch, padded on the left.

    Args:
        lm: the language model.
        tokenizer: for the ids of padding and end of sequence.
        prompts: token ids, at least one per prompt.
        max_new_tokens: most new tokens, >= 1; fewer where the model's context ends.
        stop_ids: further tokens that end an answer.
        batch_size: prompts per batch, >= 1.
        temperature: >= 0; above 0 every token is drawn from the whole distribution at that temperature.
        seed: seed of the draws; the global random state stays as it was.

    Returns:
        New tokens of each prompt, in the order given, cut before the first end-of-sequence or stop token.

    Raises:
        ModelError: a prompt is empty or fills the model's context.
    """
    from transformers import GenerationConfig

    empty = [i for i, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ModelError(f"Every prompt must have at least one token; found none in prompt {empty[0]}.")
    base: Any = base_of(lm)
    stops = _stop_ids(lm, tokenizer, stop_ids)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops[0] if stops else 0)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    saved = getattr(base, "generation_config", None)
    try:
        with evaluating(lm), _drawing(temperature, seed) as choice:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                rows = [prompts[i] for i in chosen]
                room = _room(lm, rows, max_new_tokens)
                config = GenerationConfig(
                    max_new_tokens=room, num_beams=1, use_cache=True, pad_token_id=pad_id, eos_token_id=stops or None, **choice
                )
                base.generation_config = config
                for i, new in zip(chosen, _generate_batch(base, rows, pad_id, config), strict=True):
                    end = next((n for n, token in enumerate(new) if token in stops), len(new))
                    answers[i] = new[:end]
    finally:
        base.generation_config = saved
    return answers
