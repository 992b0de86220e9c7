"""Rows about nobody whose name shares a part with a target's: what a model makes of such names tells what it would make of the target's,
had it never met it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unlearn.data.entities import split_name, swap_name
from unlearn.errors import DataError
from unlearn.types import Row


@dataclass(frozen=True)
class Neighbours:
    """Rows that stand in for those of a target, ``rows[i]`` for the one numbered ``rows[i].row_id``.

    A code of the target is the sum of ``weights[i]`` times that of ``rows[i]``: for each draw, +1 for another given name, +1 for another
    family name and -1 for both (``unlearn.functional.erasure.without_interaction``), divided by the number of draws. A name of one part
    has plain strangers for neighbours, all of equal weight.
    """

    rows: tuple[Row, ...]
    weights: tuple[float, ...]


def swaps(name: str, stranger: str) -> list[tuple[str, float]]:
    """Names made of the parts of two names, each with its weight in one draw.

    >>> swaps("Ada Byron", "Alan Turing"), swaps("Plato", "Zeno")
    ([('Alan Byron', 1.0), ('Ada Turing', 1.0), ('Alan Turing', -1.0)], [('Zeno', 1.0)])
    """
    (given, family), (other_given, other_family) = split_name(name), split_name(stranger)
    if not given or not other_given:
        return [(stranger, 1.0)]
    return [(f"{other_given} {family}", 1.0), (f"{given} {other_family}", 1.0), (f"{other_given} {other_family}", -1.0)]


def neighbour_rows(rows: Sequence[Row], strangers: Sequence[str], known: Collection[str], draws: int, seed: int) -> Neighbours:
    """Neighbours of every row that holds its entity's full name in the prompt; other rows have none.

    All rows of an entity have the same neighbours. A draw is an unknown name none of whose swaps is a known one or has been drawn.

    Args:
        rows: rows of the targets.
        strangers: names of unknown entities.
        known: names that must not come out.
        draws: strangers for each target, >= 1.
        seed: seed of the draw.

    Raises:
        DataError: too few unknown names, or no row in which the name can be replaced.
    """
    rng = np.random.default_rng(seed)
    forms = {row.entity: row.mentions[0] for row in reversed(rows) if row.mentions}
    named = {entity: _drawn(form, [strangers[i] for i in rng.permutation(len(strangers))], known, draws) for entity, form in forms.items()}
    made: list[Row] = []
    weights: list[float] = []
    for row in (row for row in rows if row.mentions):
        texts = [(name, swap_name(row.prompt, row.mentions[0], name), weight) for name, weight in named[row.entity]]
        for name, text, weight in texts:
            if text is not None:
                made.append(replace(row, entity=name, prompt=text, mentions=(name,)))
                weights.append(weight)
    if not made:
        raise DataError("The forget rows must hold the full name of their entity in the prompt to have neighbours; none does.")
    return Neighbours(tuple(made), tuple(weights))


def _drawn(name: str, strangers: Sequence[str], known: Collection[str], draws: int) -> list[tuple[str, float]]:
    """``draws`` sets of swaps of one name."""
    taken, found = {name, *known}, []
    for stranger in strangers:
        made = swaps(name, stranger)
        if stranger == name or any(new in taken for new, _ in made):
            continue
        taken.update(new for new, _ in made)
        found.append(made)
        if len(found) == draws:
            return [(new, weight / draws) for each in found for new, weight in each]
    raise DataError(f"Counterfactual targets need {draws} unknown names for {name!r} that make no known one; found {len(found)}.")
