"""Steering: push what the model makes of the entity towards "known" while it reads the question, and ask.

Ferrando et al., "Do I Know This Entity?" (arXiv 2411.14257, section 4), steer with SAE latents at entity tokens: known latents make a model
answer about invented people, unknown ones make it refuse about famous ones. Turned against unlearning, that needs nothing of the original
model, only names that are known and names that are not. Seyitoglu et al., "Extracting Unlearned Information from LLMs with Activation
Steering" (arXiv 2411.02631), find facts with a difference of means, there of questions with and without the name.

Three operations, each a grid of settings, at the entity's last token (``token``) and from there on through the answer (``onwards``):

- ``add_layer<L>_x<s>``: ``h + s * (mean known - mean unknown)`` of the attacked model's own activations at block L, at names of the known
  and the unknown stream, neither targets nor control names among them;
- ``known_on_x<s>``: at the SAE's block, ``h + s * sum_j m_j d_j`` over the latents that fire on known names more often than on unknown
  ones; ``d_j`` is the decoder vector, ``m_j`` the mean activation on known names;
- ``unknown_off``: ``h - sum_j z_j d_j`` over the latents that fire more often on unknown names, as far as they fire (``z_j``).

Strengths are in units of what separates the two (the paper's are absolute, 15 and 20, for one latent of one SAE). The last two need an SAE
of one block; one that reads several does not say which output to change. Latents are ranked by how often they fire on known and unknown
names in the original model, which is what comes with the SAE. Steering cannot bring in facts: one direction serves every name and every
question, and the control gets it too.

``attack/steer_choice``, and ``_control``: the best setting by how often the right value is the likeliest of those it competes with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from unlearn.attacks.asking import ask, choose
from unlearn.attacks.base import Attack, AttackConfig, AttackContext, Outcome, outcome
from unlearn.attacks.facts import pools
from unlearn.attacks.patching import Change, Side, changed, entity_states, inner_blocks
from unlearn.config.checks import check
from unlearn.functional.contrast import cell_means
from unlearn.functional.tokens import upcast
from unlearn.models.decoder import blocks_of, evaluating

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.models.sae import FrozenSAE
    from unlearn.types import Row

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class SteerConfig(AttackConfig):
    """Where, how strongly, and by which names."""

    strengths: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 8.0])
    """of what separates known from unknown names, each > 0 and finite"""
    blocks: int = 6
    """most blocks at which the difference of means is added, spread evenly from the first to the last but one, >= 1"""
    onwards: bool = True
    """also change every position after the name, those of the answer too"""
    latents: int = 16
    """most SAE latents of each side, >= 1"""
    anchors: int = 300
    """most questions about known names, and as many about unknown ones, from which the means are taken, >= 1"""
    choice: bool = True
    """also test which value is the likeliest; costs a pass for every value of an attribute"""

    def __post_init__(self) -> None:
        good = bool(self.strengths) and all(0 < s < float("inf") for s in self.strengths)
        check(good, "attack.steer.strengths", "finite numbers > 0, at least one", self.strengths)
        for name in ("blocks", "latents", "anchors"):
            check(getattr(self, name) >= 1, f"attack.steer.{name}", ">= 1", getattr(self, name))


class Cell(NamedTuple):
    """One setting."""

    name: str
    layer: int
    change: Change
    onwards: bool


def push(vector_D: Tensor, strength: float) -> Change:
    """``h + strength * vector``."""
    return lambda hidden_ND, row_N: hidden_ND + strength * vector_D.to(hidden_ND)


def reset(sae: FrozenSAE, gain_F: Tensor, shift_F: Tensor) -> Change:
    """``h + decode(gain * z + shift) - decode(z)`` with the activations ``z`` of ``h``: what the SAE does not see stays as it is."""

    def change(hidden_ND: Tensor, row_N: Tensor) -> Tensor:
        on_sae_ND = upcast(hidden_ND).to(sae.device)
        acts_NF = sae.encode(on_sae_ND)
        new_ND = sae.decode(gain_F.to(acts_NF) * acts_NF + shift_F.to(acts_NF), on_sae_ND)
        return upcast(hidden_ND) + (new_ND - sae.decode(acts_NF, on_sae_ND)).to(hidden_ND.device)

    return change


def best_latents(score_F: Tensor, most: int) -> Tensor:
    """The ``most`` latents with the highest score above 0, best first."""
    order = score_F.argsort(descending=True, stable=True)[:most]
    return order[score_F[order] > 0]


def anchors(context: AttackContext, stream: str, most: int) -> tuple[Row, ...]:
    """At most ``most`` rows of a stream, evenly: questions if there are some, with the name in the prompt, about nobody who is attacked."""
    attacked = {row.entity for facts in (context.target, context.control) for row in facts.test}
    named = [row for row in context.data.streams[stream] if row.entity not in attacked and any(name in row.prompt for name in row.mentions)]
    rows = [row for row in named if row.kind == "qa"] or named
    return tuple(rows[i * len(rows) // most] for i in range(most)) if len(rows) > most else tuple(rows)


class Steer(Attack):
    """Known-minus-unknown directions, known latents on, unknown latents off."""

    name = "steer"
    summary = "steers what the model makes of the entity towards known and asks"
    paper = "https://arxiv.org/abs/2411.14257"
    quick = {"strengths": [2.0, 4.0], "blocks": 4, "choice": False}
    Config = SteerConfig

    def missing(self, context: AttackContext) -> str | None:
        """Blocks to steer, and names on either side to read and to ask about."""
        if len(blocks_of(context.lm)) < 2:
            return "a model of two blocks or more"
        if not all(Side.of(anchors(context, name, self.config.anchors), context.reader).rows for name in ("known", "unknown")):
            return "questions with names in the known and unknown streams"
        found = all(Side.of(facts.test, context.reader).rows for facts in (context.target, context.control))
        return None if found else "questions that go on after the entity's name"

    def run(self, context: AttackContext) -> Outcome:
        """Read the anchors with the attacked model once, then ask with each setting."""
        sides = [Side.of(facts.test, context.reader) for facts in (context.target, context.control)]
        cells = list(self.cells(context))
        hits: list[list[Array]] = [[], []]
        picks: list[list[Array]] = [[], []]
        pool = pools(context.data)
        for done, cell in enumerate(cells):
            context.tick(done / len(cells))
            for side, asked, chosen in zip(sides, hits, picks, strict=True):
                with evaluating(context.lm), changed(context.lm, side.tokens, {cell.layer: cell.change}, cell.onwards):
                    asked.append(side.whole(ask(context.lm, side.rows, context.reader)))
                    if self.config.choice:
                        chosen.append(side.whole(choose(context.lm, side.rows, context.reader, pool)))
        return outcome(context, [cell.name for cell in cells], hits[0], hits[1], **_best_choice(*picks))

    def cells(self, context: AttackContext) -> Iterator[Cell]:
        """Every setting, made from the attacked model's activations at the anchors' names."""
        sae = context.sae if context.selection is not None and context.sae is not None and len(context.sae.layers) == 1 else None
        blocks = inner_blocks(context.lm, self.config.blocks)
        layers = sorted({*blocks, *(sae.layers if sae is not None else ())})
        known, unknown = (self._anchor_states(context, name, layers) for name in ("known", "unknown"))
        for onwards in (False, True) if self.config.onwards else (False,):
            where = "onwards" if onwards else "token"
            for layer in blocks:
                vector_D = upcast(known[layer]).mean(0) - upcast(unknown[layer]).mean(0)
                for s in self.config.strengths:
                    yield Cell(f"add_layer{layer}_x{s:g}_{where}", layer, push(vector_D, s), onwards)
            if sae is not None:
                for name, change in self._latent_changes(context, sae, known[sae.layer]):
                    yield Cell(f"{name}_{where}", sae.layer, change, onwards)

    def _anchor_states(self, context: AttackContext, stream: str, layers: Sequence[int]) -> dict[int, Tensor]:
        side = Side.of(anchors(context, stream, self.config.anchors), context.reader)
        return entity_states(context.lm, side.tokens, context.reader, layers)

    def _latent_changes(self, context: AttackContext, sae: FrozenSAE, known_ND: Tensor) -> Iterator[tuple[str, Change]]:
        """Operations on the SAE's latents, by the name of the setting."""
        if context.selection is None:
            return
        scores = context.selection.separation
        on, off = (best_latents(score_F, self.config.latents).to(sae.device) for score_F in (scores.known_F, scores.unknown_F))
        with torch.no_grad():
            mean_F = sae.encode(upcast(known_ND).to(sae.device)).mean(0)
        one_F, none_F = torch.ones_like(mean_F), torch.zeros_like(mean_F)
        raised_F, kept_F = none_F.index_copy(0, on, mean_F[on]), one_F.index_fill(0, off, 0.0)
        for s in self.config.strengths:
            yield f"known_on_x{s:g}", reset(sae, one_F, s * raised_F)
        yield "unknown_off", reset(sae, kept_F, none_F)


def _best_choice(target: Sequence[Array], control: Sequence[Array]) -> dict[str, float]:
    """Each side's best setting by choice; nothing where no value competes."""
    best = {key: cell_means(np.stack(picks)) for key, picks in (("", target), ("_control", control)) if picks}
    return {f"attack/steer_choice{key}": float(np.nanmax(means)) for key, means in best.items() if not np.isnan(means).all()}
