"""Causal tracing of feed-forward layers: which of them carry what the model recalls about an entity.

Source: Meng, Bau, Andonian, Belinkov, "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262), section 2: the entity's tokens
are noised at the input of the model, clean outputs of some module are put back, and what counts is how much of the answer's probability
comes back with them. Here the modules are the MLPs of a window of neighbouring blocks, at every token of the entity's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn.data.entities import occurrences
from unlearn.errors import ModelError
from unlearn.functional.tokens import row_mean, token_nll
from unlearn.models.capture import EMBEDDINGS, capture
from unlearn.models.decoder import blocks_of, device_of, evaluating
from unlearn.models.edit import edited
from unlearn.models.forward import forward
from unlearn.types import Row, TokenBatch

if TYPE_CHECKING:
    from unlearn.data.reader import Reader


def mlp_of(block: nn.Module) -> nn.Module:
    """The feed-forward layer of a decoder block.

    Raises:
        ModelError: the block has none called ``mlp``.
    """
    found = getattr(block, "mlp", None)
    if not isinstance(found, nn.Module):
        names = ", ".join(name for name, _ in block.named_children())
        raise ModelError(f"A decoder block must have a feed-forward layer called mlp; found {names}.")
    return found


@contextmanager
def hooked(modules: Mapping[int, nn.Module], hook: Callable[[int, Any, Any], Any], *, before: bool = False) -> Iterator[None]:
    """Call ``hook(key, args, output)`` after each module runs (before it, with output None); what it returns replaces the output."""
    handles = []
    for key, module in modules.items():
        if before:
            handles.append(module.register_forward_pre_hook(lambda m, args, key=key: hook(key, args, None)))
        else:
            handles.append(module.register_forward_hook(lambda m, args, output, key=key: hook(key, args, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most ``most`` rows, evenly spread over the list."""
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else list(rows)


def entity_masks(rows: Sequence[Row], batch: TokenBatch, tokenizer: Any) -> Tensor:
    """True on every token of each row's entity, [B, T]: back from its last token to where the name is complete."""
    forms = {r.row_id: next((f for f in r.mentions if occurrences(r.prompt, f) or occurrences(r.answer, f)), "") for r in rows}
    mask_BT = torch.zeros_like(batch.input_ids_BT, dtype=torch.bool)
    for place, (row_id, end) in enumerate(zip(batch.row_id_B.tolist(), batch.entity_end_B.tolist(), strict=True)):
        ids = batch.input_ids_BT[place].tolist()
        starts = (s for s in range(end, 0, -1) if forms[row_id] in tokenizer.decode(ids[s : end + 1]))
        mask_BT[place, next(starts, end) : end + 1] = True
    return mask_BT


def answer_probability(lm: nn.Module, batch: TokenBatch) -> Tensor:
    """Mean probability of the answer's tokens, each given those before it, [B]."""
    out = forward(lm, batch)
    return row_mean((-token_nll(out.logits_AV, out.targets_A)).exp(), out.row_A, len(batch.row_id_B))


def _noise(batch: TokenBatch, width: int, draw: int, seed: int) -> Tensor:
    """Standard normal noise [B, T, D] that depends on the seed, the row and the draw."""
    made = []
    for row_id in batch.row_id_B.tolist():
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row_id * 7919 + draw) % 2**63)
        made.append(torch.randn(batch.input_ids_BT.shape[1], width, generator=generator))
    return torch.stack(made).to(batch.input_ids_BT.device)


def _keep(store: dict[int, Tensor], n: int, args: Any, output: Tensor) -> None:
    store[n] = output


def _restored(clean: Mapping[int, Tensor], mask_BT: Tensor, n: int, args: Any, output: Tensor) -> Tensor:
    return torch.where(mask_BT[..., None], clean[n], output)


def _shifted(shift_BTD: Tensor, hidden_BTD: Tensor) -> Tensor:
    return hidden_BTD + shift_BTD.to(hidden_BTD.dtype)


def trace(lm: nn.Module, rows: Sequence[Row], reader: Reader, *, width: int, noise: float, draws: int, seed: int) -> tuple[float, ...]:
    """Probability of the answer that the clean MLP outputs of each window of blocks bring back.

    The answer's probability is the mean over its tokens, each given those before it.

    Args:
        lm: the language model.
        rows: rows that name their entity, at least one.
        reader: makes batches of them.
        width: blocks of a window, from 1 to the model's depth.
        noise: standard deviation of the noise, in units of that of the names' embeddings.
        draws: draws of the noise for each row.
        seed: seed of the noise.

    Returns:
        One number for each window, by its first block: mean over rows and draws of (probability restored - probability noised).

    Raises:
        ModelError: a block has no MLP where we look for it.
    """
    mlps = {n: mlp_of(block) for n, block in enumerate(blocks_of(lm))}
    batches = reader.batches(rows, device_of(lm))
    masks = [entity_masks(rows, batch, reader.tokenizer) for batch in batches]
    recovered = torch.zeros(len(mlps) - width + 1, dtype=torch.double)
    with evaluating(lm):
        embedded_ND = torch.cat([capture(lm, b, EMBEDDINGS)[m].float() for b, m in zip(batches, masks, strict=True)])
        scale = noise * embedded_ND.std().item()
        for batch, mask_BT in zip(batches, masks, strict=True):
            clean: dict[int, Tensor] = {}
            with hooked(mlps, partial(_keep, clean)):
                forward(lm, batch)
            for draw in range(draws):
                shift_BTD = scale * _noise(batch, embedded_ND.shape[1], draw, seed) * mask_BT[..., None]
                with edited(lm, EMBEDDINGS, partial(_shifted, shift_BTD)):
                    ruined = answer_probability(lm, batch).sum()
                    for first in range(len(recovered)):
                        window = {n: mlps[n] for n in range(first, first + width)}
                        with hooked(window, partial(_restored, clean, mask_BT)):
                            recovered[first] += (answer_probability(lm, batch).sum() - ruined).item()
    return tuple((recovered / (len(rows) * draws)).tolist())
