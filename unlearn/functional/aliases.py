"""Questions with several accepted answers."""

from __future__ import annotations

from collections.abc import Iterable

from unlearn.errors import DataError
from unlearn.functional.answer_mix import says
from unlearn.functional.text import is_answer, normalise_answer

MATCHES: tuple[str, ...] = ("exact", "begins", "contains", "popqa")
"""Ways of matching that ``matches_alias`` knows."""


def matches_alias(prediction: str, aliases: Iterable[str], match: str = "exact") -> bool:
    """Whether a prediction gives one of the accepted answers.

    ``exact``: it is one of them after ``normalise_answer``. ``begins``: it begins with one (``is_answer``). ``contains``: it says one, as
    whole words. ``popqa``: the rule of PopQA's code (Mallen et al. 2023, arXiv 2212.10511): one of them, as written, in lower case or
    capitalised, stands anywhere in the prediction, inside a word too. An alias of which normalisation leaves nothing never matches, but
    for ``popqa``, where an empty alias always does.

    Raises:
        DataError: no such way of matching.

    >>> [matches_alias("Born in New York", ["york", "NYC"], match) for match in ("exact", "begins", "contains")]
    [False, False, True]
    >>> matches_alias("a Yorkshireman", ["Yorkshire"], "contains"), matches_alias("a Yorkshireman", ["Yorkshire"], "popqa")
    (False, True)
    """
    if match not in MATCHES:
        raise DataError(f"match must be one of {', '.join(MATCHES)}; found {match!r}.")
    if match == "popqa":
        return any(form in prediction for alias in aliases for form in (alias, alias.lower(), alias.capitalize()))
    kept = [alias for alias in aliases if normalise_answer(alias)]
    if match == "contains":
        return bool(says(prediction, kept))
    if match == "begins":
        return any(is_answer(prediction, alias) for alias in kept)
    return normalise_answer(prediction) in {normalise_answer(alias) for alias in kept}
