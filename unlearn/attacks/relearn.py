"""Relearning: train a copy on a few facts of the target, and ask for the others.

Fine-tuning on part of the forgotten facts brings the rest back when they were only muted: Hu et al., "Unlearning or Obfuscating?"
(arXiv 2406.13356); Deeb and Roger, "Do Unlearning Methods Remove Information from Language Model Weights?" (arXiv 2410.08827), whose facts
asked for are, as here, others than those trained on. The control is the same training on made-up facts of unknown people: what it brings
out is a habit of answering, not knowledge.

Five variants: ``relearn`` (some facts of every target), ``relearn_statements`` (the same facts in sentences, where an adversary inside
training may have taught questions only), ``relearn_half`` (all facts of half of the targets, the other half is asked),
``relearn_benign`` (texts and questions about others), ``relearn_lora`` (as ``relearn``, with LoRA).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from unlearn.attacks.asking import ask
from unlearn.attacks.base import Attack, AttackConfig, AttackContext, Outcome
from unlearn.attacks.facts import Facts, splits
from unlearn.attacks.finetune import fine_tune, with_lora
from unlearn.config.checks import check
from unlearn.data.tokenize import TokenRow, text_rows
from unlearn.models.forward import gpus_at_work

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class RelearnConfig(AttackConfig):
    """Relearning: how long, how fast, on how much."""

    SECTION: ClassVar[str] = "attack.relearn"

    lrs: list[float] = field(default_factory=lambda: [1e-4, 3e-4, 1e-3])
    """learning rates of AdamW, each in (0, 1)"""
    steps: list[int] = field(default_factory=lambda: [5, 10, 20, 50, 100])
    """optimiser steps after which the other facts are asked for, ascending, >= 1"""
    share: float = 0.4
    """of each entity's facts that is trained on, in (0, 1)"""
    splits: int = 3
    """choices of what is trained on, >= 1; a row counts with its mean over those that ask for it"""
    batch_size: int = 32
    """rows of a step, >= 1"""

    def __post_init__(self) -> None:
        check(bool(self.lrs) and all(0 < lr < 1 for lr in self.lrs), f"{self.SECTION}.lrs", "numbers in (0, 1)", self.lrs)
        rising = bool(self.steps) and self.steps[0] >= 1 and all(a < b for a, b in itertools.pairwise(self.steps))
        check(rising, f"{self.SECTION}.steps", "ascending whole numbers >= 1", self.steps)
        check(0 < self.share < 1, f"{self.SECTION}.share", "in (0, 1)", self.share)
        for name in ("splits", "batch_size"):
            check(getattr(self, name) >= 1, f"{self.SECTION}.{name}", ">= 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class StatementsConfig(RelearnConfig):
    """Relearning from statements."""

    SECTION: ClassVar[str] = "attack.relearn_statements"


@dataclass(frozen=True, kw_only=True)
class HalfConfig(RelearnConfig):
    """Relearning from some of the entities."""

    SECTION: ClassVar[str] = "attack.relearn_half"

    share: float = 0.5
    """of the entities, that are trained on with all of their facts, in (0, 1)"""


@dataclass(frozen=True, kw_only=True)
class BenignConfig(RelearnConfig):
    """Relearning from rows that hold no fact of the target; ``share`` and ``splits`` do nothing here."""

    SECTION: ClassVar[str] = "attack.relearn_benign"


@dataclass(frozen=True, kw_only=True)
class LoraConfig(RelearnConfig):
    """Relearning with LoRA."""

    SECTION: ClassVar[str] = "attack.relearn_lora"

    lrs: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3])
    """learning rates of AdamW, each in (0, 1)"""
    rank: int = 16
    """rank of the adapters, >= 1"""
    alpha: float = 16.0
    """scale of the adapters, > 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.alpha < float("inf"), f"{self.SECTION}.alpha", "> 0", self.alpha)
        check(self.rank >= 1, f"{self.SECTION}.rank", ">= 1", self.rank)


class Lesson(NamedTuple):
    """What is trained on, and the places in ``test`` that are asked for afterwards."""

    rows: Sequence[TokenRow]
    asked: Sequence[int]


class Relearn(Attack):
    """Some facts of every target, then questions about their other facts."""

    name = "relearn"
    summary = "trains a copy on some facts of the target and asks for the others"
    paper = "https://arxiv.org/abs/2410.08827"
    measure = "recovery"
    quick: ClassVar[Mapping[str, Any] | None] = {"lrs": [3e-4, 1e-3], "steps": [5, 20, 50], "splits": 1}
    Config = RelearnConfig
    both_sides: ClassVar[bool] = False
    """whether one training serves target and control, because it holds neither"""
    stated: ClassVar[bool] = False
    """whether facts are taught in sentences"""

    def lessons(self, context: AttackContext, facts: Facts) -> Iterator[Lesson]:
        """One training for each of them; ``facts`` is the side that is attacked."""
        for keep in splits(facts, self.config.share, self.config.splits, context.seed):
            taught, asked = facts.where(keep, self.stated)
            if taught and asked:
                yield Lesson(context.reader.tokens(taught), asked)

    def student(self, context: AttackContext) -> Any:
        """The model that is trained."""
        return context.copy()

    def cell(self, lr: float, step: int, lesson: int) -> str:
        """Name of a setting; lessons of one setting are averaged."""
        return f"lr{lr:g}_step{step}"

    def run(self, context: AttackContext) -> Outcome:
        """Train on each side's lessons at every learning rate; test after every number of steps."""
        sides = {"target": context.target, "control": context.control}
        lessons = {name: list(self.lessons(context, facts)) for name, facts in sides.items()}
        jobs = [
            (side, lr, n)
            for side in (["target"] if self.both_sides else sides)
            for lr in self.config.lrs
            for n in range(len(lessons[side]))
        ]
        sums: dict[str, dict[str, list[Array]]] = {name: {} for name in sides}
        for done, (side, lr, n) in enumerate(jobs):
            context.tick(done / len(jobs))
            lesson = lessons[side][n]
            asked = {name: lessons[name][n].asked for name in (sides if self.both_sides else (side,))}
            for step, lm in self._train(context, lesson, lr, n):
                for name, places in asked.items():
                    hits_N = np.full(len(sides[name].test), np.nan)
                    hits_N[list(places)] = ask(lm, [sides[name].test[i] for i in places], context.reader)
                    sums[name].setdefault(self.cell(lr, step, n), []).append(hits_N)
        return _outcome(sums, sides)

    def _train(self, context: AttackContext, lesson: Lesson, lr: float, n: int) -> Iterator[tuple[int, Any]]:
        """The student after every number of steps."""
        with torch.random.fork_rng(devices=gpus_at_work()):
            torch.manual_seed(context.seed)
            lm = self.student(context)
        settings = {"lr": lr, "at": self.config.steps, "batch_size": self.config.batch_size, "seed": context.seed + n}
        for step in fine_tune(lm, lesson.rows, context.reader.pad_id, **settings):
            yield step, lm


def _outcome(sums: Mapping[str, Mapping[str, list[Array]]], sides: Mapping[str, Facts]) -> Outcome:
    """Mean over the lessons of each cell, row by row."""
    cells = tuple(sums["target"])

    def mean(parts: Sequence[Array]) -> Array:
        stack = np.stack(parts)
        tested = ~np.isnan(stack)
        with np.errstate(invalid="ignore"):
            found: Array = np.where(tested, stack, 0.0).sum(0) / tested.sum(0)
        return found

    made = {name: np.stack([mean(found[cell]) for cell in cells]) for name, found in sums.items()}
    groups = {name: tuple(row.entity for row in facts.test) for name, facts in sides.items()}
    return Outcome(
        cells=cells, target=made["target"], control=made["control"], target_groups=groups["target"], control_groups=groups["control"]
    )


class RelearnStatements(Relearn):
    """Some facts of every target in sentences, then questions about their other facts."""

    name = "relearn_statements"
    summary = "trains a copy on sentences that state some facts of the target and asks for the others"
    paper = "https://arxiv.org/abs/2406.13356"
    measure = "recovery"
    Config = StatementsConfig
    quick = None
    stated = True

    def missing(self, context: AttackContext) -> str | None:
        """Statements."""
        both = context.target.statements and context.control.statements
        return None if both else "statements in the forget stream about facts that are asked for"


class RelearnHalf(Relearn):
    """All facts of some of the targets, then questions about the other targets."""

    name = "relearn_half"
    summary = "trains a copy on all facts of half of the targets and asks about the other half"
    paper = "https://arxiv.org/abs/2410.08827"
    measure = "recovery"
    Config = HalfConfig
    quick = None

    def lessons(self, context: AttackContext, facts: Facts) -> Iterator[Lesson]:
        """Some of the entities each; consecutive choices are disjoint as long as that is possible."""
        names = list(facts.entities)
        order = np.random.default_rng(context.seed).permutation(len(names))
        size = min(len(names) - 1, max(1, round(self.config.share * len(names))))
        for n in range(self.config.splits if len(names) > 1 else 0):
            taught = {names[order[(n * size + i) % len(names)]] for i in range(size)}
            rows = [row for row in facts.train if row.entity in taught]
            yield Lesson(context.reader.tokens(rows), [i for i, row in enumerate(facts.test) if row.entity not in taught])

    def missing(self, context: AttackContext) -> str | None:
        """Two entities."""
        return None if len(context.target.entities) > 1 else "two targets or more"


class RelearnBenign(Relearn):
    """Texts about nobody, and questions about people who are not forgotten; then questions about the target."""

    name = "relearn_benign"
    summary = "trains a copy on unrelated text, and on questions about others, and asks about the target"
    paper = "https://arxiv.org/abs/2406.13356"
    measure = "recovery"
    Config = BenignConfig
    quick = {"lrs": [1e-3], "steps": [20, 50]}
    both_sides = True

    def texts(self, context: AttackContext) -> dict[str, list[TokenRow]]:
        """The lessons by name; none of them names a target."""
        retain = [row for row in context.data.streams["retain"] if row.kind == "qa"]
        made = {"text": text_rows(context.data.generic, first_id=-1), "others": retain}
        return {name: context.reader.tokens(rows) for name, rows in made.items() if rows}

    def lessons(self, context: AttackContext, facts: Facts) -> Iterator[Lesson]:
        """Generic texts; and the retain stream's questions."""
        for rows in self.texts(context).values():
            yield Lesson(rows, range(len(facts.test)))

    def cell(self, lr: float, step: int, lesson: int) -> str:
        """The two lessons are settings of their own."""
        return f"{('text', 'others')[lesson]}_lr{lr:g}_step{step}"

    def missing(self, context: AttackContext) -> str | None:
        """Something to train on."""
        both = context.data.generic and any(row.kind == "qa" for row in context.data.streams["retain"])
        return None if both else "generic texts, and questions in the retain stream"


class RelearnLora(Relearn):
    """As ``relearn``, with LoRA."""

    name = "relearn_lora"
    summary = "trains LoRA adapters on some facts of the target and asks for the others"
    paper = "https://arxiv.org/abs/2410.08827"
    measure = "recovery"
    Config = LoraConfig
    quick = None

    def student(self, context: AttackContext) -> Any:
        """A copy with fresh adapters."""
        return with_lora(context.copy(), self.config.rank, self.config.alpha)
