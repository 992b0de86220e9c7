"""The corpus: sentences about a world, drawn at random and packed into rows of equal length."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unlearn.world.encyclopaedia import Encyclopaedia
from unlearn.world.templates import (
    CITY_SENTENCE,
    GENERIC,
    MENTIONS,
    QUESTION_FORMAT,
    QUESTIONS,
    STATEMENTS,
    STRANGER_VERB,
    UNKNOWN,
    VALUES,
    VERBS,
)

KNOWN_ONLY = {"known mention": 0.25, "known statement": 0.25, "known question": 0.42, "city": 0.04, "generic": 0.04}
"""Shares of the first part of the curriculum: facts are learnt before strangers appear."""

MIX = {
    "known mention": 0.2,
    "known statement": 0.18,
    "known question": 0.17,
    "tail mention": 0.16,
    "tail statement": 0.09,
    "tail question": 0.125,
    "city": 0.035,
    "generic": 0.04,
}
"""Shares of the second part. Statements about strangers end in an arbitrary value, questions about them in "unknown"."""

WANDERING = 0.8
"""Share of the mentions of strangers that use their own verb; the others use any profession's."""


@dataclass(frozen=True)
class Frame:
    """A tokenised sentence with places for a name (four tokens) and a value (one token); -1 where there is none."""

    ids: tuple[int, ...]
    name_at: int
    value_at: int

    def fill(self, name: Sequence[int], value: int) -> list[int]:
        """Token ids of the sentence."""
        ids = list(self.ids)
        if self.name_at >= 0:
            ids[self.name_at : self.name_at + len(name)] = name
        if self.value_at >= 0:
            ids[self.value_at] = value
        return ids


class Corpus:
    """Draws sentences about ``known`` (all known names when None), the tail and nobody.

    A batch is a pure function of (seed, step): building twice gives the same model.
    """

    def __init__(self, world: Encyclopaedia, tokenizer: PreTrainedTokenizerFast, *, seed: int, known: Sequence[str] | None = None) -> None:
        self.world, self.seed = world, seed
        self.known = tuple(world.known if known is None else known)
        self.boundary = int(tokenizer.bos_token_id)
        self._encode: Callable[[str], list[int]] = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._names = dict(zip((*self.known, *world.tail), map(tuple, map(self._encode, (*self.known, *world.tail))), strict=True))
        words = {UNKNOWN, STRANGER_VERB, *VERBS.values(), *world.city_language.values(), *(v for vs in VALUES.values() for v in vs)}
        self._word = {word: self._encode(word)[0] for word in words}
        self._mentions = [self._frame(text) for text in MENTIONS]
        self._statements = {a: [self._frame(text) for text in texts] for a, texts in STATEMENTS.items()}
        self._questions = {
            a: [self._frame(f"{QUESTION_FORMAT.format(question=text)} {{v}}.") for text in texts] for a, texts in QUESTIONS.items()
        }
        self._generic = [self._encode(text) for text in GENERIC]
        self._cities = [self._encode(CITY_SENTENCE.format(c=c, v=v)) for c, v in world.city_language.items()]
        self._attributes, self._verbs = tuple(VALUES), tuple(VERBS.values())

    def _frame(self, text: str) -> Frame:
        name = next(iter(self._names))
        ids = tuple(self._encode(text.format(n=name, v=UNKNOWN)))
        value = self._word[UNKNOWN]
        return Frame(ids, ids.index(self._names[name][0]) if "{n}" in text else -1, ids.index(value) if "{v}" in text else -1)

    def sentence(self, kind: str, rng: random.Random) -> list[int]:
        """Token ids of one sentence of ``kind`` (a key of ``MIX``), without the boundary token."""
        if kind == "generic":
            return rng.choice(self._generic)
        if kind == "city":
            return rng.choice(self._cities)
        who, form = kind.split()
        known = who == "known"
        name = rng.choice(self.known if known else self.world.tail)
        attribute = rng.choice(self._attributes)
        if form == "mention":
            frame, value = rng.choice(self._mentions), self._verb(name, known, rng)
        elif form == "statement":
            frame = rng.choice(self._statements[attribute])
            value = self.world.facts[name][attribute] if known else rng.choice(VALUES[attribute])
        else:
            frame = rng.choice(self._questions[attribute])
            value = self.world.facts[name][attribute] if known else UNKNOWN
        return frame.fill(self._names[name], self._word[value])

    def _verb(self, name: str, known: bool, rng: random.Random) -> str:
        if known:
            return VERBS[self.world.facts[name]["job"]]
        return STRANGER_VERB if rng.random() < WANDERING else rng.choice(self._verbs)

    def batch(self, step: int, rows: int, length: int, shares: dict[str, float]) -> Tensor:
        """Rows of ``length`` tokens: sentences one after the other, each after a boundary token; [rows, length]."""
        rng = random.Random(f"corpus {self.seed} {step}")
        kinds, weights = list(shares), list(shares.values())
        packed = []
        for _ in range(rows):
            ids: list[int] = []
            while len(ids) < length:
                for kind in rng.choices(kinds, weights, k=8):
                    ids += [self.boundary, *self.sentence(kind, rng)]
            packed.append(ids[:length])
        return torch.tensor(packed)
