"""Metrics of generated answers: lists of texts in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from unlearn.errors import ConfigError, DataError
from unlearn.functional.aliases import MATCHES, matches_alias
from unlearn.functional.text import is_answer, is_refusal, rouge_1, rouge_l
from unlearn.metrics.rows import RowMean


def _paired(predictions: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    if isinstance(predictions, str) or isinstance(references, str):
        raise DataError("predictions and references must be lists of texts; found a single text.")
    if len(predictions) != len(references):
        raise DataError(f"predictions and references must be of equal length; found {len(predictions)} and {len(references)}.")
    return list(zip(predictions, references, strict=True))


class AnswerAccuracy(RowMean):
    """Share of predictions that are the reference or begin with it, in [0, 1]: ``unlearn.functional.text.is_answer``.

    >>> metric = AnswerAccuracy()
    >>> metric.update(["Paris, in France.", "a baker"], ["Paris", "carpenter"])
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better: bool = True
    key: ClassVar[str] = "accuracy"

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Count in one batch.

        Raises:
            DataError: lists of unequal length, or single texts.
        """
        self.add(torch.tensor([float(is_answer(p, r)) for p, r in _paired(predictions, references)], device=self.device))


class RefusalRate(RowMean):
    """Share of predictions that begin with a refusal, in [0, 1]: ``unlearn.functional.text.is_refusal``.

    Args:
        refusals: answers that count as not knowing (``EntityData.refusals``), at least one.

    >>> metric = RefusalRate(["I don't know", "unknown"])
    >>> metric.update(["I don’t know that.", "Paris"])
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better: None = None
    key: ClassVar[str] = "refusal_rate"

    def __init__(self, refusals: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(refusals, str) or not refusals:
            raise ConfigError(f"refusals must be a list of at least one answer; found {refusals!r}.")
        self.refusals = tuple(refusals)

    def update(self, predictions: Sequence[str]) -> None:
        """Count in one batch."""
        predictions = [p for p, _ in _paired(predictions, predictions)]
        self.add(torch.tensor([float(is_refusal(p, self.refusals)) for p in predictions], device=self.device))


class _Rouge(RowMean):
    """Mean of one value of a ROUGE score."""

    higher_is_better: bool = True
    rouge: ClassVar[Callable[[str, str, bool], tuple[float, float]]]

    def __init__(self, value: str = "recall", stem: bool = False, **kwargs: Any) -> None:
        super().__init__(variant=f"_{value}_{stem}", **kwargs)
        if value not in ("recall", "f1"):
            raise ConfigError(f"value must be one of recall, f1; found {value!r}.")
        self.value = value
        self.stem = stem

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Count in one batch.

        Raises:
            DataError: lists of unequal length, or single texts.
        """
        column = ("recall", "f1").index(self.value)
        scores = [type(self).rouge(p, r, self.stem)[column] for p, r in _paired(predictions, references)]
        self.add(torch.tensor(scores, dtype=self.dtype, device=self.device))


class Rouge1(_Rouge):
    """Mean over rows of ROUGE-1, in [0, 1]: ``unlearn.functional.text.rouge_1``.

    Args:
        value: ``recall`` or ``f1``.
        stem: whether words are stemmed first.

    >>> metric = Rouge1("f1")
    >>> metric.update(["mat on the cat"], ["the cat sat on the mat"])
    >>> metric.compute()
    tensor(0.8000)
    """

    key: ClassVar[str] = "rouge_1"
    rouge: ClassVar[Callable[[str, str, bool], tuple[float, float]]] = staticmethod(rouge_1)


class RougeL(_Rouge):
    """Mean over rows of ROUGE-L, in [0, 1]: ``unlearn.functional.text.rouge_l``.

    Args:
        value: ``recall`` or ``f1``.
        stem: whether words are stemmed first.

    >>> metric = RougeL()
    >>> metric.update(["the cat sat"], ["the cat sat on the mat"])
    >>> metric.compute()
    tensor(0.5000)
    """

    key: ClassVar[str] = "rouge_l"
    rouge: ClassVar[Callable[[str, str, bool], tuple[float, float]]] = staticmethod(rouge_l)


class AliasMatch(RowMean):
    """Share of predictions that match one of the accepted answers, in [0, 1]: ``unlearn.functional.aliases.matches_alias``.

    Args:
        match: ``exact``, ``begins``, ``contains`` or ``popqa``.

    >>> metric = AliasMatch()
    >>> metric.update(["The U.S.", "Paris, France"], [["USA", "US"], ["Paris"]])
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better: bool = True
    key: ClassVar[str] = "alias_match"

    def __init__(self, match: str = "exact", **kwargs: Any) -> None:
        super().__init__(variant=f"_{match}", **kwargs)
        if match not in MATCHES:
            raise ConfigError(f"match must be one of {', '.join(MATCHES)}; found {match!r}.")
        self.match = match

    def update(self, predictions: Sequence[str], aliases: Sequence[Sequence[str]]) -> None:
        """Count in one batch: predictions, and the accepted answers of each.

        Raises:
            DataError: lists of unequal length, or single texts.
        """
        if isinstance(predictions, str) or isinstance(aliases, str) or any(isinstance(accepted, str) for accepted in aliases):
            raise DataError("predictions must be a list of texts and aliases a list of lists; found a single text.")
        if len(predictions) != len(aliases):
            raise DataError(f"predictions and aliases must be of equal length; found {len(predictions)} and {len(aliases)}.")
        hits = [float(matches_alias(p, accepted, self.match)) for p, accepted in zip(predictions, aliases, strict=True)]
        self.add(torch.tensor(hits, device=self.device))
