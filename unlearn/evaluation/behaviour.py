"""How the model answers: the mix of kinds of answers about the target beside that about people it never met, and one number for utility."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unlearn.functional.answer_mix import ANSWER_KINDS, answer_kind, answer_mix, mix_permutation
from unlearn.functional.utility import harmonic_mean

if TYPE_CHECKING:
    from unlearn.types import EntityData, Row

SENTENCE = 4
"""Reference answers of this many words (median) or more are compared by overlap, not word for word."""
OVERLAP = 0.6
"""Least ROUGE-L recall at which a sentence counts as said."""

UTILITY = ("probability", "rouge_l", "truth_ratio")
OPTIONS = ("real_authors", "world_facts")
"""Sets whose probability is among options, as in TOFU (arXiv 2401.06121, section 2.2.2)."""


def _kinds(
    rows: Sequence[Row], texts: Sequence[str], values: Mapping[str, Sequence[str]], refusals: Sequence[str], overlap: float | None
) -> list[str]:
    return [answer_kind(text, row.answer, values.get(row.attribute, ()), refusals, overlap) for row, text in zip(rows, texts, strict=True)]


def behaviour(data: EntityData, texts: Mapping[str, Sequence[str]], permutations: int, seed: int) -> dict[str, float]:
    """Kinds of answers about the target (in other words, where there are such rows) beside those about unknown entities.

    ``forget/answers_<kind>``, ``unknown/answers_<kind>``: shares in [0, 1]; ``forget/answer_mix_distance``: their total variation
    distance in [0, 1], with ``forget/answer_mix_p_value`` (permuting entities). Empty where the source has none to ask about.

    Args:
        data: rows; the values of an attribute are those that any of them gives.
        texts: answers to every row, by set.
        permutations: of the test, >= 1.
        seed: of the permutations.
    """
    name = "forget_paraphrased" if data.evaluation.get("forget_paraphrased") else "forget"
    target, strangers = data.evaluation[name], data.evaluation.get("unknown", ())
    if not target or not strangers:
        return {}
    everybody = [row for rows in (*data.evaluation.values(), *data.streams.values()) for row in rows if row.kind == "qa"]
    values: dict[str, dict[str, None]] = {}
    for row in everybody:
        values.setdefault(row.attribute, {}).update(dict.fromkeys((row.answer, *row.perturbed_answers)))
    listed = {attribute: tuple(found) for attribute, found in values.items() if attribute}
    words = statistics.median(len(row.answer.split()) for row in target)
    overlap = OVERLAP if words >= SENTENCE else None
    mine = _kinds(target, texts[name], listed, data.refusals, overlap)
    theirs = _kinds(strangers, texts["unknown"], listed, data.refusals, overlap)
    groups = [r.entity for r in target], [r.entity for r in strangers]
    distance, p_value = mix_permutation(mine, theirs, *groups, n=permutations, seed=seed)
    found = {"forget/answer_mix_distance": distance, "forget/answer_mix_p_value": p_value}
    for scope, kinds in (("forget", mine), ("unknown", theirs)):
        mix = answer_mix(kinds)
        found |= {f"{scope}/answers_{kind}": mix[kind] for kind in ANSWER_KINDS}
    return found


def utility(results: Mapping[str, float]) -> dict[str, float]:
    """``retain/utility``: harmonic mean of probability, ROUGE-L recall and truth ratio on what is retained, in [0, 1].

    With TOFU's real authors and world facts it is its model utility (arXiv 2401.06121, section 2.2.2); elsewhere the retain set alone.
    Empty where a number is missing.
    """
    keys = [f"retain/{metric}" for metric in UTILITY]
    for scope in OPTIONS:
        if f"{scope}/rouge_l" in results:
            keys += [f"{scope}/option_probability", f"{scope}/rouge_l", f"{scope}/truth_ratio"]
    if not all(key in results for key in keys):
        return {}
    return {"retain/utility": harmonic_mean([results[key] for key in keys])}
