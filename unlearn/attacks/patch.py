"""Patching: what the original model makes of the entity is put back, and the attacked model has to answer from there.

The original model reads the same prompt, and its block output at the last token of the entity's name takes the place of the attacked
model's: at one block (``layer<L>``), or from a block on (``layer<L>_up``). When that brings the answers back, recognition was muted and the
rest of the way to the fact is still there. After causal tracing (Meng et al., arXiv 2202.05262, section 2: a clean run's states restored at
the subject's last token), and Lee et al., "Measuring the Depth of LLM Unlearning via Activation Patching" (arXiv 2605.24614).

Deviations: the latter patch the unlearned model's states into the original one, where answers are predicted, and read likelihoods
(``forget/depth_score`` does that). Here it is the other way round, at the entity's token only and never where an answer is predicted, which
would hand over the answer and test nothing; and the model has to say the answer. The last block is left out: nothing reads its output at a
token that is past. Rows that do not name their entity in the prompt, or end their prompt with it, are not asked.

How to read it: the activation at the entity's last token may carry facts itself (Geva et al., "Dissecting Recall of Factual Associations",
arXiv 2304.14767, find attributes there from the middle blocks on), and the patch brings those along. A model that never knew them can then
read them off, so the gold model's share, not the control's, is the yardstick: made-up facts are in no activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.attacks.asking import ask
from unlearn.attacks.base import Attack, AttackConfig, AttackContext, Outcome, outcome
from unlearn.attacks.patching import Change, Side, changed, entity_states, inner_blocks
from unlearn.config.checks import check
from unlearn.models.decoder import blocks_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PatchConfig(AttackConfig):
    """Where activations are put back."""

    blocks: int = 12
    """most blocks that are tried, spread evenly from the first to the last but one, >= 1"""
    upwards: bool = True
    """also patch from each of them up to the last but one"""

    def __post_init__(self) -> None:
        check(self.blocks >= 1, "attack.patch.blocks", ">= 1", self.blocks)


def _put(states_ND: Tensor) -> Change:
    """The activations of another model, by row."""
    return lambda hidden_ND, row_N: states_ND.to(hidden_ND.device)[row_N.to(hidden_ND.device)]


class Patch(Attack):
    """The original model's activation at the entity's last token, put into the attacked model."""

    name = "patch"
    summary = "puts the original model's activation of the entity back and asks"
    paper = "https://arxiv.org/abs/2605.24614"
    quick = {"blocks": 4}
    Config = PatchConfig

    def missing(self, context: AttackContext) -> str | None:
        """The original model, blocks that can be patched, and somewhere to patch."""
        if context.original is None:
            return "the original model (--base)"
        if len(blocks_of(context.lm)) < 2:
            return "a model of two blocks or more"
        found = all(Side.of(facts.test, context.reader).rows for facts in (context.target, context.control))
        return None if found else "questions that go on after the entity's name"

    def cells(self, context: AttackContext) -> dict[str, tuple[int, ...]]:
        """Blocks that are patched, by the name of the setting."""
        last = len(blocks_of(context.lm)) - 2
        starts = inner_blocks(context.lm, self.config.blocks)
        cells: dict[str, tuple[int, ...]] = {f"layer{n}": (n,) for n in starts}
        if self.config.upwards:
            cells |= {f"layer{n}_up": tuple(range(n, last + 1)) for n in starts if n < last}
        return cells

    def run(self, context: AttackContext) -> Outcome:
        """Read both sides' prompts with the original model once, then ask with each setting.

        Raises:
            ValueError: the original model is not there (``missing`` says so).
        """
        if context.original is None:
            raise ValueError("patch needs the original model")
        cells = self.cells(context)
        layers = sorted({layer for found in cells.values() for layer in found})
        sides = [Side.of(facts.test, context.reader) for facts in (context.target, context.control)]
        original = context.original()
        states = [entity_states(original, side.tokens, context.reader, layers) for side in sides]
        hits: list[list[object]] = [[], []]
        for done, blocks in enumerate(cells.values()):
            context.tick(done / len(cells))
            for side, own, found in zip(sides, states, hits, strict=True):
                changes: Mapping[int, Change] = {layer: _put(own[layer]) for layer in blocks}
                with changed(context.lm, side.tokens, changes):
                    found.append(side.whole(ask(context.lm, side.rows, context.reader)))
        return outcome(context, tuple(cells), *hits)  # type: ignore[arg-type]
