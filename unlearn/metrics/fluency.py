"""Metrics of free text: is it still language?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from unlearn.errors import ConfigError, DataError
from unlearn.functional.text import ngram_entropy, repetition, words
from unlearn.metrics.rows import RowMean

Splitter = Callable[[str], Sequence[str]]


def _listed(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise DataError("texts must be a list of texts; found a single text.")
    return texts


class NgramEntropy(RowMean):
    """Mean over texts of ``unlearn.functional.text.ngram_entropy``, in bits, >= 0: RWKU's fluency, which its tables print times 100.

    A fall means repetitive or short texts, a rise rambling ones.

    Args:
        split: how a text becomes words. RWKU takes NLTK's, as ``unlearn.functional.text.words`` does.

    >>> metric = NgramEntropy()
    >>> metric.update(["one two three four five", "no no no no no"])
    >>> metric.compute()
    tensor(0.8617)
    """

    higher_is_better: None = None
    key: ClassVar[str] = "ngram_entropy"

    def __init__(self, split: Splitter = words, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.split = split

    def update(self, texts: Sequence[str]) -> None:
        """Count in one batch.

        Raises:
            DataError: a single text.
        """
        self.add(torch.tensor([ngram_entropy(self.split(text)) for text in _listed(texts)], dtype=self.dtype, device=self.device))


class Repetition(RowMean):
    """Mean over texts of the share of n-grams that occurred before, in [0, 1): ``unlearn.functional.text.repetition``.

    Args:
        n: words per n-gram, >= 1.
        split: how a text becomes words.

    >>> metric = Repetition(n=2)
    >>> metric.update(["one two three four five", "no no no no no"])
    >>> metric.compute()
    tensor(0.3750)
    """

    higher_is_better: bool = False
    key: ClassVar[str] = "repetition"

    def __init__(self, n: int = 4, split: Splitter = words, **kwargs: Any) -> None:
        super().__init__(variant=f"_{n}", **kwargs)
        if n < 1:
            raise ConfigError(f"n must be at least 1; found {n}.")
        self.n = n
        self.split = split

    def update(self, texts: Sequence[str]) -> None:
        """Count in one batch.

        Raises:
            DataError: a single text.
        """
        self.add(torch.tensor([repetition(self.split(text), self.n) for text in _listed(texts)], dtype=self.dtype, device=self.device))
