"""A small language model that knows given rows by heart, with its tokenizer and SAE: trained from random weights on the rows themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unlearn.data.anchors import rng_for
from unlearn.data.tokenize import TokenRow, batches, collate, render, tokenize_rows
from unlearn.functional.memorisation import probability
from unlearn.functional.tokens import token_nll
from unlearn.models.capture import capture
from unlearn.models.forward import forward
from unlearn.types import PromptFormat
from unlearn.world.pretrain import pretrain, tiny_llama
from unlearn.world.sae_training import train_sae
from unlearn.world.small_spec import SmallCorpus, SmallRecipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
MODEL, SAE = "model", "sae"
"""Folders of a cache entry."""

WINDOW = 8
"""Batches whose rows are sorted by length together, so that a batch holds little padding."""

MEASURED_ROWS, MEASURE_BATCH = 200, 64
"""Rows on which memorisation is measured, and rows of one forward pass that trains nothing."""


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most ``vocabulary`` entries with its own tokens for padding, begin and end; offsets tell characters.

    >>> tokenizer = train_tokenizer(["Who is Ada Byron?"] * 4, 300)
    >>> tokenizer.decode(tokenizer("Who is Ada?", add_special_tokens=False).input_ids)
    'Who is Ada?'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    template = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, inner.token_to_id(BOS))])
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000,
    )


class Schedule:
    """The batch of every step, a pure function of (rows, seed, step): passes over ``learnt`` with the next few ``strangers`` mixed in.

    Rows of like length share a batch.
    """

    def __init__(
        self, learnt: Sequence[TokenRow], strangers: Sequence[TokenRow], *, each_epoch: int, batch_rows: int, pad_id: int, seed: int
    ) -> None:
        """Keep the rows; ``each_epoch`` strangers join each pass, in turn."""
        self.learnt, self.strangers = learnt, strangers
        self.each_epoch = each_epoch if strangers else 0
        self.batch_rows, self.pad_id, self.seed = batch_rows, pad_id, seed
        self.per_epoch = -(-(len(learnt) + self.each_epoch) // batch_rows)
        self._epoch: tuple[int, list[list[TokenRow]]] = (-1, [])

    def _batches(self, epoch: int) -> list[list[TokenRow]]:
        rng = rng_for(self.seed, f"epoch {epoch}")
        first = epoch * self.each_epoch
        rows = [*self.learnt, *(self.strangers[(first + i) % len(self.strangers)] for i in range(self.each_epoch))]
        order = rng.permutation(len(rows))
        window = WINDOW * self.batch_rows
        sorted_order = [i for at in range(0, len(rows), window) for i in sorted(order[at : at + window], key=lambda i: len(rows[i].ids))]
        made = [[rows[i] for i in sorted_order[at : at + self.batch_rows]] for at in range(0, len(rows), self.batch_rows)]
        return [made[i] for i in rng.permutation(len(made))]

    def __call__(self, step: int) -> Tensor:
        """Token ids of ``step``, [B, T], padded on the right."""
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return collate(self._epoch[1][place], self.pad_id).input_ids_BT


@torch.no_grad()
def answer_probability(lm: PreTrainedModel, rows: Sequence[TokenRow], pad_id: int) -> np.ndarray:
    """``exp(-mean NLL)`` of each row's answer, in (0, 1], shape [N]."""
    values = np.zeros(len(rows))
    for places, batch in batches(rows, MEASURE_BATCH, pad_id):
        out = forward(lm, batch)
        values[places] = probability(token_nll(out.logits_AV, out.targets_A), out.row_A, len(places)).numpy()
    return values


@torch.no_grad()
def token_activations(lm: PreTrainedModel, rows: Sequence[TokenRow], layer: int, pad_id: int) -> Tensor:
    """Outputs of block ``layer`` at every token but the first of each row, [N, D]."""
    kept = []
    for _, batch in batches(rows, MEASURE_BATCH, pad_id):
        mask_BT = batch.attention_mask_BT.bool().clone()
        mask_BT[:, 0] = False
        kept.append(capture(lm, batch, layer)[mask_BT])
    return torch.cat(kept)


def _some(rows: Sequence[TokenRow], most: int) -> list[TokenRow]:
    """At most ``most`` rows, evenly spread."""
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else list(rows)


def build_small(
    recipe: SmallRecipe, corpus: SmallCorpus, fmt: PromptFormat, *, seed: int, folder: Path, progress: bool = True
) -> Mapping[str, Any]:
    """Train tokenizer, language model and SAE, and write them to ``folder`` as HF and SAELens directories.

    Args:
        recipe: sizes and steps.
        corpus: rows to train on.
        fmt: how a question becomes text: the format in which the model will be asked.
        seed: seed of weights and batches.
        folder: gets ``MODEL`` and ``SAE``.
        progress: whether progress bars may be shown.

    Returns:
        Facts for the manifest: ``loss`` (nats per token, last tenth of the steps), ``answer_probability`` (mean and least over a sample of
        the learnt question rows), ``refusal_probability`` (mean over a sample of the strangers), ``model_cpu_seconds`` and ``cpu_seconds``
        (process time, all threads), ``sae``.

    Raises:
        DataError: a row is longer than the context.
    """
    started = time.process_time()
    tokenizer = train_tokenizer(
        [*corpus.texts, *("".join(render(row, fmt)) for row in (*corpus.learnt, *corpus.strangers))], recipe.vocabulary
    )
    learnt, strangers = (tokenize_rows(rows, tokenizer, fmt, recipe.context) for rows in (corpus.learnt, corpus.strangers))
    pad_id = int(tokenizer.pad_token_id)
    schedule = Schedule(learnt, strangers, each_epoch=recipe.strangers_each_epoch, batch_rows=recipe.batch_rows, pad_id=pad_id, seed=seed)
    lm = tiny_llama(tokenizer, blocks=recipe.blocks, width=recipe.width, heads=recipe.heads, max_length=recipe.context, seed=seed)
    loss = pretrain(lm, schedule, steps=recipe.steps, lr=recipe.lr, pad_id=pad_id, title="Small language model", progress=progress)
    lm.save_pretrained(folder / MODEL)
    tokenizer.save_pretrained(folder / MODEL)
    model_seconds = time.process_time() - started

    asked = [tokens for tokens, row in zip(learnt, corpus.learnt, strict=True) if row.kind == "qa"]
    known = answer_probability(lm, _some(asked, MEASURED_ROWS), pad_id)
    refused = answer_probability(lm, _some(strangers, MEASURED_ROWS), pad_id)
    activations_ND = token_activations(lm, [*learnt, *_some(strangers, len(learnt) // 2)], recipe.sae_layer, pad_id)
    quality = train_sae(
        activations_ND,
        d_sae=recipe.sae_latents,
        k=recipe.sae_k,
        steps=recipe.sae_steps,
        lr=recipe.sae_lr,
        seed=seed,
        layer=recipe.sae_layer,
        model_name="unlearn-small",
        out=folder / SAE,
        title="Sparse autoencoder",
        progress=progress,
    )
    return {
        "recipe": asdict(recipe),
        "seed": seed,
        "rows": {"learnt": len(learnt), "strangers": len(strangers), "epochs": recipe.steps / schedule.per_epoch},
        "parameters": lm.num_parameters(),
        "loss": loss,
        "answer_probability": {"mean": float(known.mean()), "least": float(known.min())} if len(known) else {},
        "refusal_probability": float(refused.mean()) if len(refused) else None,
        "sae": asdict(quality),
        "model_cpu_seconds": model_seconds,
        "cpu_seconds": time.process_time() - started,
    }
