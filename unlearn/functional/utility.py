"""One number for what a model can still do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import hmean

from unlearn.errors import DataError

TOFU_UTILITY: tuple[str, ...] = tuple(
    f"{scope}/{metric}" for scope in ("retain", "real_authors", "world_facts") for metric in ("probability", "rouge_l", "truth_ratio")
)
"""The nine numbers of TOFU's model utility. On real authors and world facts the probability is among options
(``unlearn.functional.memorisation.option_probability``); ROUGE-L is the recall, the truth ratio is read as ``utility``."""


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean, >= 0: 0 as soon as one value is 0, nan where one is nan (TOFU's model utility, arXiv 2401.06121, section 2.2.2).

    Raises:
        DataError: no values, or one below 0.

    >>> round(harmonic_mean([0.5, 1.0]), 4), harmonic_mean([0.9, 0.0])
    (0.6667, 0.0)
    """
    if not len(values):
        raise DataError("the harmonic mean needs at least one value; found none.")
    if any(math.isnan(value) for value in values):
        return math.nan
    if min(values) < 0:
        raise DataError(f"the harmonic mean needs values of at least 0; found {min(values)}.")
    return float(hmean(values)) if min(values) > 0 else 0.0
