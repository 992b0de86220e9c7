"""A large model whose logits are shifted by what a small model has learnt: ``M + alpha * (tuned - frozen)``.

The sum must hold wherever the model is run: scored as a whole or at some positions only, generated from with a key-value cache and left
padding, copied. So it is put together with hooks where every path goes through. A hook on the decoder runs both small decoders on the same
tokens and lays their final hidden states beside the large model's, [B, T, D + d + d]; whatever then picks positions picks all three parts;
hooks on the output head take the parts apart again, let the head see its own, and add the small heads' difference to its logits. What the
head is handed at its plain width (a logit lens, stored reference states) it maps as it always did.

No weight and no module of the large model changes. The small models hang on the hooks, so ``copy.deepcopy`` of the model copies them too.
Their key-value caches are further layers of the large model's own cache: reordered for beam search and cropped with it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unlearn.errors import ModelError
from unlearn.models.capture import truncated
from unlearn.models.decoder import base_of, block_list_name, blocks_of, decoder_of, output_head

_CACHES = "unlearn_small"


class Small(nn.Module):
    """A small language model: a decoder, and a head from its final hidden states [.., d] to logits [.., V]."""

    def __init__(self, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head

    @property
    def width(self) -> int:
        """Width d of its residual stream."""
        return int(self.decoder.config.hidden_size)  # type: ignore[union-attr, arg-type]


def small_of(lm: nn.Module) -> Small:
    """The parts of a whole language model."""
    return Small(decoder_of(lm), output_head(lm))


def first_blocks(lm: nn.Module, blocks: int) -> Small:
    """A small model out of ``lm``'s first ``blocks`` blocks, with copies of its final norm and head; the embeddings are shared.

    Raises:
        ModelError: the model does not have more blocks than that.
    """
    n_blocks = len(blocks_of(lm))
    if not 1 <= blocks < n_blocks:
        raise ModelError(f"blocks must leave the small model smaller than the large one, in [1, {n_blocks - 1}]; found {blocks}.")
    decoder = decoder_of(lm)
    kept = [*base_of(lm).get_input_embeddings().parameters()]  # type: ignore[operator]
    kept += [p for module in decoder.children() if isinstance(module, nn.Embedding) for p in module.parameters()]
    shared: dict[int, Any] = {id(p): p for p in kept}
    with truncated(lm, blocks):
        shorter = copy.deepcopy(decoder, shared)
    config = shorter.config
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:blocks]  # type: ignore[union-attr, arg-type]
    config.num_hidden_layers = blocks  # type: ignore[union-attr]
    weights = {id(p): nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in output_head(lm).parameters()}
    return Small(shorter, copy.deepcopy(output_head(lm), weights))


class Ensemble:
    """The small models of a large one, and the hooks that add them; made and put in place by ``join``."""

    def __init__(self, lm: nn.Module, frozen: Small, tuned: Small, alpha: float) -> None:
        self.frozen = frozen
        self.tuned = tuned
        self.alpha = alpha
        self.n_blocks = len(blocks_of(lm))
        self.extra = frozen.width + tuned.width
        self.width = int(decoder_of(lm).config.hidden_size)  # type: ignore[union-attr, arg-type]
        self._beside: Tensor | None = None

    def widen(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After the decoder: final hidden states [B, T, D] become [B, T, D + d + d]. A pass that stops at a block is left alone."""
        if len(getattr(decoder, block_list_name(decoder))) < self.n_blocks:
            return output
        cache = getattr(output, "past_key_values", None)
        caches = [None, None] if cache is None else self._caches(cache)
        with torch.no_grad():
            frozen = self._run(self.frozen, args, kwargs, caches[0])
        tuned = self._run(self.tuned, args, kwargs, caches[1])
        plain = output[0]
        wide = torch.cat([plain, frozen.to(plain), tuned.to(plain)], dim=-1)
        if isinstance(output, tuple):
            return (wide, *output[1:])
        output.last_hidden_state = wide
        return output

    def _caches(self, cache: Any) -> list[Any]:
        """Caches of the small models, for as long as the large model's lives."""
        from transformers import DynamicCache

        if _CACHES not in cache.__dict__:
            made = [DynamicCache(config=small.decoder.config) for small in (self.frozen, self.tuned)]
            for small in made:
                cache.layers.extend(small.layers)
            cache.__dict__[_CACHES] = made
        found: list[Any] = cache.__dict__[_CACHES]
        return found

    def _run(self, small: Small, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any) -> Tensor:
        """Final hidden states [B, T, d] of a small model on what the decoder was given."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ModelError("A model with a small one beside it must be run on input_ids; found embeddings only.")
        output = small.decoder(
            input_ids=ids,
            attention_mask=kwargs.get("attention_mask"),
            position_ids=kwargs.get("position_ids"),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        found: Tensor = output[0]
        return found

    def split(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Before the head: keep what belongs to the small models, hand on the rest."""
        self._beside = None
        if args[0].shape[-1] != self.width + self.extra:
            return args
        plain, self._beside = args[0].split([self.width, self.extra], dim=-1)
        return (plain, *args[1:])

    def add(self, head: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        """After the head: logits [.., V] plus alpha times the small models' difference."""
        if self._beside is None:
            return logits
        frozen, tuned = self._beside.split([self.frozen.width, self.tuned.width], dim=-1)
        self._beside = None
        with torch.no_grad():
            before = self.frozen.head(frozen)
        shift = self.tuned.head(tuned) - before
        return logits + self.alpha * pad(shift, (0, logits.shape[-1] - shift.shape[-1]))


def ensemble_of(lm: nn.Module) -> Ensemble | None:
    """The ensemble that ``lm`` is part of; None for a model by itself."""
    owners = (getattr(hook, "__self__", None) for hook in decoder_of(lm)._forward_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Ensemble)), None)


def join(lm: nn.Module, frozen: Small, tuned: Small, alpha: float) -> Ensemble:
    """From now on ``lm`` gives ``logits + alpha * (tuned - frozen)`` wherever it is run on token ids.

    The small models' logits are added before whatever the family of ``lm`` does to its head's output (Gemma 2 caps the sum); what their own
    family would do to theirs is not done. Columns beyond a smaller vocabulary stay as they are.

    Args:
        lm: the large model.
        frozen: the small model as it was.
        tuned: the small model that is trained.
        alpha: weight of the difference.

    Raises:
        ModelError: there are small models beside it already.
    """
    if ensemble_of(lm) is not None:
        raise ModelError("The language model must stand alone before a small one is put beside it; found an ensemble.")
    made = Ensemble(lm, frozen, tuned, alpha)
    decoder_of(lm).register_forward_hook(made.widen, with_kwargs=True)
    output_head(lm).register_forward_pre_hook(made.split)
    output_head(lm).register_forward_hook(made.add)
    return made
