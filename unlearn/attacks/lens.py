"""Lenses: which of the possible answers does each layer favour?

A model that no longer says a fact may still compute it on the way. Logit lens (nostalgebraist 2020): final norm and head read the output of
a block. Tuned lens (Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv 2303.08112): before that an
affine map, one for each layer, takes the block's output to what the last block will make of it. The maps are fitted on the attacked model
itself, on texts about nobody and on rows about entities that are not forgotten, so that they bring no fact of the target.

A hit is a row whose right answer has the highest logit among the values it competes with, at the position that predicts the answer; n
equal best ones, as where first tokens coincide, count 1 / n. Only the first token of an answer is read.

Deviations: the paper fits the maps by gradient descent on the KL divergence from the model's final distribution, at every token of a large
text. Here a map is the ridge regression of what the later blocks add, ``h_last - h``, on ``h``: closed form, with a penalty that pulls it
to the logit lens plus a constant. It is fitted where answers (and the tokens of texts) are predicted, because it is read there; on few rows
a fit on prompts too finds less. The beginning-of-sequence token, whose activations are like no other's, is left out. The last layer needs
no map and has none. The logit lens as an attack on deleted facts: Patil et al. (arXiv 2309.17410).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unlearn.attacks.base import Array, Attack, AttackConfig, AttackContext, Outcome, outcome
from unlearn.attacks.facts import Facts, options_of, pools
from unlearn.config.checks import check
from unlearn.data.tokenize import TokenRow, batches, text_rows
from unlearn.evaluation.depth import lens_logits
from unlearn.functional.ridge import Affine, fit_change
from unlearn.functional.tokens import answer_positions
from unlearn.models.capture import capture_layers
from unlearn.models.decoder import blocks_of, device_of, evaluating

if TYPE_CHECKING:
    from unlearn.data.reader import Reader
    from unlearn.types import Row, TokenBatch


@dataclass(frozen=True, kw_only=True)
class LensConfig(AttackConfig):
    """Lenses: on how much the tuned one is fitted."""

    tuned: bool = True
    """whether the tuned lens is tried beside the logit lens"""
    tokens: int = 8192
    """answer tokens of other rows and tokens of texts on which its maps are fitted, >= 1; whole rows until there are that many"""
    penalty: float = 0.01
    """ridge penalty of the maps, as a share of the mean variance of the activations, > 0"""

    def __post_init__(self) -> None:
        check(self.tokens >= 1, "attack.lens.tokens", ">= 1", self.tokens)
        check(0 < self.penalty < float("inf"), "attack.lens.penalty", "a number > 0", self.penalty)


def first_tokens(rows: Sequence[Row], reader: Reader, pool: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """First answer token of every value that each row's answer competes with, itself first."""
    options = [options_of(row, pool) for row in rows]
    flat = [replace(row, answer=value, mentions=()) for row, values in zip(rows, options, strict=True) for value in values]
    firsts = iter([token.ids[token.answer_start] for token in reader.tokens(flat)])
    return [[next(firsts) for _ in values] for values in options]


def best_first(logits_V: Tensor, tokens: Sequence[int]) -> float:
    """Share of the best of ``tokens`` that the first one is: 1 alone, 1 / n among n equals, 0 when another is better, nan without others.

    >>> best_first(torch.tensor([0.0, 2.0, 1.0]), [1, 2]), best_first(torch.tensor([0.0, 2.0, 1.0]), [1, 1, 2])
    (1.0, 0.5)
    """
    if len(tokens) < 2:
        return float("nan")
    found = logits_V[list(tokens)]
    best = found == found.max()
    return float(best[0]) / float(best.sum())


def _moved(batch: TokenBatch, device: torch.device) -> TokenBatch:
    return type(batch)(*(t.to(device) for t in batch))


def _material(context: AttackContext, tokens: int) -> list[TokenRow]:
    """Texts about nobody and rows about those who are not forgotten, in random order, until ``tokens`` tokens are predicted in them."""
    rows = [*text_rows(context.data.generic, first_id=-1), *context.data.streams["retain"]]
    made: list[TokenRow] = []
    total = 0
    for i in np.random.default_rng(context.seed).permutation(len(rows)):
        if total >= tokens:
            break
        made += context.reader.tokens([rows[i]])
        total += len(made[-1].ids) - made[-1].answer_start
    return made


def fit_maps(context: AttackContext, tokens: int, penalty: float) -> dict[int, Affine]:
    """The tuned lens's map of every layer but the last, on the model's own device."""
    lm, reader = context.lm, context.reader
    layers, bos = range(len(blocks_of(lm))), reader.tokenizer.bos_token_id
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for _, cpu_batch in batches(_material(context, tokens), reader.batch_size, reader.pad_id):
        batch = _moved(cpu_batch, device_of(lm))
        row_A, pos_A = answer_positions(batch.labels_BT)
        if bos is not None:
            keep_A = batch.input_ids_BT[row_A, pos_A] != bos
            row_A, pos_A = row_A[keep_A], pos_A[keep_A]
        for layer, hidden_BTD in capture_layers(lm, batch, layers).items():
            states[layer].append(hidden_BTD[row_A, pos_A].float().cpu())
    joined = {layer: torch.cat(parts) for layer, parts in states.items()}
    return {layer: fit_change(joined[layer], joined[layers[-1]], penalty).to(device_of(lm)) for layer in layers[:-1]}


class Lens(Attack):
    """Reads the answer off every layer."""

    name = "lens"
    summary = "reads the right answer off every layer with the logit lens and the tuned lens"
    paper = "https://arxiv.org/abs/2303.08112"
    quick = {}
    Config = LensConfig

    def missing(self, context: AttackContext) -> str | None:
        """Answers that compete with others, and rows to fit the tuned lens on."""
        if self.config.tuned and not (context.data.generic or context.data.streams["retain"]):
            return "generic texts or retain rows"
        pool = pools(context.data)
        sides = (context.target.test, context.control.test)
        both = all(any(len(options_of(row, pool)) > 1 for row in side) for side in sides)
        return None if both else "questions whose answers compete with other values"

    def run(self, context: AttackContext) -> Outcome:
        """Both lenses on every layer, on both sides."""
        with evaluating(context.lm):
            maps = fit_maps(context, self.config.tokens, self.config.penalty) if self.config.tuned else {}
            context.tick(0.6)
            target, control = (self.read(context, facts, maps) for facts in (context.target, context.control))
        return outcome(context, list(target), list(target.values()), list(control.values()))

    def read(self, context: AttackContext, facts: Facts, maps: Mapping[int, Affine]) -> dict[str, Array]:
        """Hits of every test row, [N], by cell."""
        lm, reader, rows = context.lm, context.reader, facts.test
        layers = range(len(blocks_of(lm)))
        cells = {f"logit@layer{layer}": np.full(len(rows), np.nan) for layer in layers}
        cells |= {f"tuned@layer{layer}": np.full(len(rows), np.nan) for layer in maps}
        competing = first_tokens(rows, reader, pools(context.data))
        for places, cpu_batch in batches(reader.tokens(rows), reader.batch_size, reader.pad_id):
            batch = _moved(cpu_batch, device_of(lm))
            for layer, hidden_BD in capture_layers(lm, batch, layers, batch.answer_start_B - 1).items():
                views = {"logit": hidden_BD}
                if layer in maps:
                    views["tuned"] = maps[layer](hidden_BD)
                for lens, seen_BD in views.items():
                    for place, logits_V in zip(places, lens_logits(lm, seen_BD), strict=True):
                        cells[f"{lens}@layer{layer}"][place] = best_first(logits_V, competing[place])
        return cells
