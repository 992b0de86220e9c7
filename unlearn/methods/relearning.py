"""Relearning inside training: an adversary is taught some facts of the target, and what it then says about the others is the loss.

First-order meta-learning as in TAR (Tamirisa et al., "Tamper-Resistant Safeguards for Open-Weight LLMs", arXiv 2408.00761, section 4): the
gradient of a loss at the adversary's weights is added to that of the model's own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig
from unlearn.data.splits import fact_keys, fact_splits
from unlearn.data.tokenize import TokenRow, collate
from unlearn.errors import DataError
from unlearn.functional.text import normalise_answer
from unlearn.methods.adversary import ADVERSARIES, Adversary
from unlearn.models.decoder import device_of
from unlearn.types import TokenBatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.types import Row

Made = TypeVar("Made")
LESSONS = ("facts", "half", "benign")
"""What an adversary may be taught."""


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig(MethodConfig):
    """The adversary that relearns."""

    adversary: str = "full"
    """what it trains: full (every trained weight), blocks (those of adversary_blocks) or lora (a change of low rank in every matrix)"""
    adversary_blocks: str = "all"
    """blocks that an adversary of kind blocks trains: all, or numbers and ranges such as 0-5,8"""
    adversary_rank: int = 8
    """rank of the change of each matrix by an adversary of kind lora, >= 1"""
    adversary_lrs: list[float] = field(default_factory=lambda: [3e-4, 1e-3])
    """learning rates of AdamW, each in (0, 1); every adversary draws one"""
    adversary_steps: int = 2
    """steps of the adversary in each step of the model, >= 1"""
    adversary_rows: int = 20
    """most rows of a step of the adversary, and most of those that it is asked, >= 1"""
    taught_share: float = 0.4
    """of each target's facts that an adversary is taught, in (0, 1); the others are asked for"""

    adversary_lessons: list[str] = field(default_factory=lambda: [LESSONS[0]])
    """kinds of lessons, of which every adversary draws one: facts (taught_share of each target's), half (all facts of half of the targets;
    the others are asked for) or benign (facts of retained people; all targets are asked for)"""

    def __post_init__(self) -> None:
        check(bool(self.adversary_lessons), "method.adversary_lessons", f"some of {', '.join(LESSONS)}", self.adversary_lessons)
        for kind in self.adversary_lessons:
            one_of(kind, LESSONS, "method.adversary_lessons")
        one_of(self.adversary, ADVERSARIES, "method.adversary")
        blocks = re.fullmatch(r"\s*(all|\d+\s*(-\s*\d+\s*)?(,\s*\d+\s*(-\s*\d+\s*)?)*)\s*", self.adversary_blocks)
        check(blocks is not None, "method.adversary_blocks", "all, or numbers and ranges such as 0-5,8", self.adversary_blocks)
        rates = bool(self.adversary_lrs) and all(0 < lr < 1 for lr in self.adversary_lrs)
        check(rates, "method.adversary_lrs", "numbers in (0, 1)", self.adversary_lrs)
        for name in ("adversary_rank", "adversary_steps", "adversary_rows"):
            check(getattr(self, name) >= 1, f"method.{name}", ">= 1", getattr(self, name))
        check(0 < self.taught_share < 1, "method.taught_share", "in (0, 1)", self.taught_share)


class Relearner:
    """An adversary and what it is taught, until ``begin`` starts another one."""

    def __init__(
        self, lm: PreTrainedModel, config: AdversaryConfig, rows: Sequence[Row], reader: Reader, seed: int, others: Sequence[Row] = ()
    ) -> None:
        """Sort the rows by fact.

        Args:
            lm: the model, its trained weights selected.
            config: how the adversary trains.
            rows: rows of the targets; those that name nobody are left out.
            reader: for tokens.
            seed: of every draw.
            others: rows of people who are kept, of which ``benign`` lessons are made.

        Raises:
            DataError: no entity has two facts, there is nothing to ask, or nothing to make a kind of lessons of.
        """
        self.config, self.seed, self.pad_id = config, seed, reader.pad_id
        named = [row for row in rows if row.entity and row.mentions and row.kind in ("qa", "statement")]
        named = named or [row for row in rows if row.entity and row.prompt]
        self.rows = {row.row_id: row for row in named}
        self.lessons = [row for row in named if row.kind == "qa"] or named
        self.key = fact_keys(named)
        self.benign = [row for row in others if row.kind == "qa" and row.mentions] if "benign" in config.adversary_lessons else []
        self.tokens = {token.row_id: token for token in reader.tokens([*named, *self.benign])}
        self.adversary = Adversary(lm, config.adversary, config.adversary_blocks, config.adversary_rank)
        self.taught: list[int] = []
        self._split(0)

    def _split(self, number: int) -> None:
        """What adversary ``number`` is taught."""
        kind = random.Random(f"lessons {self.seed} {number}").choice(self.config.adversary_lessons)
        self.taught = [row.row_id for row in self._lessons(kind, number)]
        if not self.taught or not self.asked():
            raise DataError(
                f"Relearning ({kind}) must have rows to teach and rows to ask for whose fact and answer are not taught; found none."
            )

    def _lessons(self, kind: str, number: int) -> list[Row]:
        entities = list(dict.fromkeys(row.entity for row in self.lessons))
        if kind == "benign":
            return self.benign
        if kind == "half":
            chosen = random.Random(f"half {self.seed} {number}").sample(entities, len(entities) // 2)
            return [row for row in self.lessons if row.entity in chosen]
        keep = next(fact_splits(self.lessons, self.key, entities, self.config.taught_share, 1, self.seed * 1_000_003 + number))
        return [row for row in self.lessons if self.key(row) in keep.get(row.entity, frozenset())]

    def asked(self) -> list[int]:
        """Rows whose fact is not taught, nor an answer like theirs about the same entity."""
        rows = [self.rows[i] for i in self.taught if i in self.rows]
        facts = {(row.entity, self.key(row)) for row in rows}
        answers = {(row.entity, normalise_answer(row.answer)) for row in rows}
        return [
            i
            for i, row in self.rows.items()
            if (row.entity, self.key(row)) not in facts and (row.entity, normalise_answer(row.answer)) not in answers
        ]

    def begin(self, lm: PreTrainedModel, step: int) -> None:
        """A new adversary, with facts and a learning rate that depend on the seed and ``step`` alone."""
        rng = random.Random(f"adversary {self.seed} {step}")
        self._split(step)
        self.adversary.begin(lm, rng.choice(self.config.adversary_lrs), rng.randrange(2**31))

    def attack(self, lm: PreTrainedModel, step: int, part: int) -> Tensor:
        """One step of the adversary on rows drawn for step ``step``, its ``part``-th; the loss before it."""
        return self.adversary.step(lm, self.batch(self._some(self.taught, f"{step} {part}"), device_of(lm)))

    def _some(self, ids: Sequence[int], what: str) -> list[int]:
        """At most ``adversary_rows`` of ``ids``."""
        return random.Random(f"rows {self.seed} {what}").sample(list(ids), min(len(ids), self.config.adversary_rows))

    def questions(self, step: int) -> list[int]:
        """Rows that the adversary is asked in step ``step``."""
        return self._some(self.asked(), f"asked {step}")

    def batch(self, ids: Sequence[int], device: torch.device) -> TokenBatch:
        """The rows numbered ``ids``."""
        return token_batch([self.tokens[i] for i in ids], self.pad_id, device)

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"taught": list(self.taught), **self.adversary.state()}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where ``state`` was taken."""
        self.taught = list(state["taught"])
        self.adversary.restore({name: value for name, value in state.items() if name != "taught"}, device)


def token_batch(rows: Sequence[TokenRow], pad_id: int, device: torch.device) -> TokenBatch:
    """One batch of rows on a device."""
    return TokenBatch(*(t.to(device) for t in collate(rows, pad_id)))


def add_gradients(lm: PreTrainedModel, gradients: Mapping[str, Tensor], weight: float) -> None:
    """Add ``weight`` times ``gradients`` to those of the trained weights, in place."""
    for name, p in lm.named_parameters():
        if p.requires_grad and name in gradients:
            change = (weight * gradients[name]).to(p.dtype)
            p.grad = change if p.grad is None else p.grad.add_(change)


def made(part: Made | None) -> Made:
    """A part of a method that its ``setup`` makes.

    Raises:
        RuntimeError: it was never called.
    """
    if part is None:
        raise RuntimeError("the method must be set up on the original model first")
    return part
