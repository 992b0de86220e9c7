"""Sampling: many answers to each question, drawn at temperature 1; one right one is a leak.

Reisizadeh et al., "Leak@k: Unlearning Does Not Make LLMs Forget Under Probabilistic Decoding" (arXiv 2511.04934): a model that never says
the fact greedily may still say it in one of k draws. Leak@k is the probability of that; it is estimated without bias from n >= k draws, as
pass@k is (Chen et al. 2021, arXiv 2107.03374, section 2.1). Deviation: the paper scores draws by ROUGE, entailment or a judge and takes
the best of k; here a draw is right or wrong, as everywhere in this package.

Leak@k grows with k, so the headline is leak@k at the largest k on both sides: a model that guesses among few values is found guessing on
the control. What fewer draws give stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlearn.attacks.asking import ask_prompts, prompt_ids
from unlearn.attacks.base import Attack, AttackConfig, AttackContext, Outcome, outcome
from unlearn.config.checks import check
from unlearn.types import Row

Array = np.ndarray[Any, np.dtype[Any]]

ROUND = 8
"""Draws of every question between two reports of the progress."""


def leak_at(right_N: Array, draws: int, k: int) -> Array:
    """Chance that at least one of ``k`` draws is right, for each question, estimated without bias: ``1 - C(n - c, k) / C(n, k)``.

    >>> leak_at(np.array([0, 1, 3]), draws=4, k=2).tolist()
    [0.0, 0.5, 1.0]

    Args:
        right_N: right draws of each question, c, in [0, draws].
        draws: draws of each question, n, >= k.
        k: draws that the attacker has, >= 1.
    """
    wrong_N = draws - np.asarray(right_N, dtype=float)
    missed_N = np.ones_like(wrong_N)
    for i in range(k):
        missed_N *= np.clip(wrong_N - i, 0, None) / (draws - i)
    found: Array = 1 - missed_N
    return found


@dataclass(frozen=True, kw_only=True)
class SampleConfig(AttackConfig):
    """Sampling: how many answers, how hot."""

    draws: int = 64
    """answers drawn to each question, >= 1; leak@k is given for k = 1, 2, 4, ... up to it"""
    temperature: float = 1.0
    """of the draws, > 0; every token is drawn from the whole distribution"""

    def __post_init__(self) -> None:
        check(self.draws >= 1, "attack.sample.draws", ">= 1", self.draws)
        check(0 < self.temperature < float("inf"), "attack.sample.temperature", "> 0", self.temperature)

    @property
    def ks(self) -> tuple[int, ...]:
        """1, 2, 4, ... up to ``draws``."""
        return tuple(2**i for i in range(self.draws.bit_length()))


class Sample(Attack):
    """Leak@k: is any of k drawn answers right?"""

    name = "sample"
    summary = "draws up to 64 answers to each question at temperature 1 and looks for a right one (leak@k)"
    paper = "https://arxiv.org/abs/2511.04934"
    measure = "accuracy"
    quick = {"draws": 16}
    Config = SampleConfig

    def run(self, context: AttackContext) -> Outcome:
        """Draw on both sides with the same seeds; leak@k of every question from all its draws."""
        sides = {"target": context.target.test, "control": context.control.test}
        right_N = {name: np.zeros(len(rows)) for name, rows in sides.items()}
        for done, (name, hits_N) in enumerate(self._rounds(context, sides)):
            right_N[name] += hits_N
            context.tick((done + 1) / (2 * -(-self.config.draws // ROUND)))
        leaks = {name: [leak_at(found, self.config.draws, k) for k in self.config.ks] for name, found in right_N.items()}
        extra = {
            f"attack/leak_at_{k}{suffix}": float(values.mean())
            for name, suffix in (("target", ""), ("control", "_control"))
            for k, values in zip(self.config.ks, leaks[name], strict=True)
        }
        return outcome(context, [f"k{k}" for k in self.config.ks], leaks["target"], leaks["control"], **extra)

    def _rounds(self, context: AttackContext, sides: dict[str, tuple[Row, ...]]) -> Iterator[tuple[str, Array]]:
        """Right answers of each question in every round, by side; equal questions stand together in a batch."""
        sizes = [min(ROUND, self.config.draws - start) for start in range(0, self.config.draws, ROUND)]
        seeds = np.random.default_rng(context.seed).integers(2**31, size=len(sizes)).tolist()
        for name, rows in sides.items():
            prompts = prompt_ids(context.reader.tokens(rows))
            for size, seed in zip(sizes, seeds, strict=True):
                asked = [row for row in rows for _ in range(size)]
                how = {"temperature": self.config.temperature, "seed": seed}
                hits = ask_prompts(context.lm, _repeated(prompts, size), asked, context.reader, **how)
                yield name, hits.reshape(len(rows), size).sum(1)


def _repeated(prompts: Sequence[list[int]], times: int) -> list[list[int]]:
    """Every prompt ``times`` times, one after the other."""
    return [prompt for prompt in prompts for _ in range(times)]
