"""What became of the facts under attack, by the one verdict of ``unlearn.functional.judgement``, for a run or for seeds of a setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearn.functional.judgement import WORDS, attack_excesses, judge, leaks
from unlearn.report.names import plain
from unlearn.report.pool import Setting
from unlearn.tracking.reader import RunRecord

BASED = ("retain/accuracy", "retain/accuracy_unseen", "generic/perplexity")
"""Results that are compared with the original model's."""


@dataclass(frozen=True)
class Fate:
    """``word`` is the worst verdict over seeds, in the order of ``WORDS``; empty where a seed was not attacked and none is worse.

    ``counted`` tells the verdicts of all seeds, ``reason`` why; ``attacks`` counts the kinds of attacks that were made; ``leaks`` maps
    those that get facts out with any seed to their mean excess over seeds, the most first.
    """

    word: str
    counted: str
    reason: str
    attacks: int
    leaks: Mapping[str, float]


def fate(record: RunRecord, base: RunRecord | None = None) -> Fate:
    """The verdict on every seed of ``record``; ``base`` is the run that measures the original model."""
    runs = record.runs if isinstance(record, Setting) else (record,)
    found = [judged_numbers(run, base) for run in runs]
    verdicts = [judge(one) for one in found]
    words = [one.word for one in verdicts]
    reasons = [one.reason for one in verdicts]
    if len(runs) > 1:
        reasons = [f"seed {plain(run.config.get('seed', 0))}: {reason}" for run, reason in zip(runs, reasons, strict=True)]
    excesses = [attack_excesses(one) for one in found]
    out = dict.fromkeys(name for one in found for name in leaks(one))
    means = {name: _mean([one[name][0] for one in excesses if name in one]) for name in out}
    return Fate(
        word=worst_of(words),
        counted=counted(words),
        reason="; ".join(reasons),
        attacks=len({name for one in excesses for name in one}),
        leaks=dict(sorted(means.items(), key=lambda item: -item[1])),
    )


def worst_of(words: Sequence[str]) -> str:
    """The verdict that a reader must know of first: only what is erased with every seed is erased.

    >>> worst_of(["erased", "hidden"]), worst_of(["erased", ""]), worst_of(["erased", "erased"])
    ('hidden', '', 'erased')
    """
    order = [*WORDS[:-1], "", WORDS[-1]]
    return min(words, key=order.index, default="")


def counted(words: Sequence[str]) -> str:
    """Verdicts of several seeds in short; one that all share stands alone.

    >>> counted(["hidden", "damaged", "damaged"]), counted(["erased", "erased"]), counted(["erased", ""])
    ('damaged 2, hidden 1', 'erased', 'erased 1')
    """
    return ", ".join(word if n == len(words) else f"{word} {n}" for word, n in Counter(word for word in words if word).most_common())


def numbers(record: RunRecord) -> dict[str, float]:
    """The results that are numbers."""
    return {key: value for key in record.results if (value := record.number(key)) is not None}


def judged_numbers(record: RunRecord, base: RunRecord | None) -> dict[str, float]:
    """The results that are numbers, and what the original model had where the run does not say."""
    had = {f"{key}_base": value for key in BASED if base is not None and (value := base.number(key)) is not None}
    return {**had, **numbers(record)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
