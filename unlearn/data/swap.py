"""The same rows about somebody else: a target's own rows with an unknown name in the place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unlearn.data.entities import swap_name
from unlearn.errors import DataError
from unlearn.types import Row


def matched_rows(rows: Sequence[Row], strangers: Sequence[str], copies: int, seed: int) -> list[Row]:
    """Rows of ``rows`` with each entity's name replaced by that of an unknown one, ``copies`` times with other names.

    Every (entity, copy) gets a name of its own, drawn without repetition, so that the result is what ``copies * n`` unknown entities look
    like in exactly the sentences in which n targets stand. Row ids stay those of the originals. A row that does not hold its
    entity's full name, or holds a part of it elsewhere, is left out.

    Args:
        rows: rows of the targets.
        strangers: names of unknown entities.
        copies: unknown names for each target, >= 1.
        seed: seed of the draw.

    Raises:
        DataError: too few names, or no row in which the name can be replaced.
    """
    entities = list(dict.fromkeys(row.entity for row in rows if row.mentions))
    wanted = copies * len(entities)
    names = list(dict.fromkeys(strangers))
    if wanted > len(names):
        raise DataError(f"latents.matched = {copies} needs {wanted} unknown names for {len(entities)} targets; found {len(names)}.")
    drawn = [names[i] for i in np.random.default_rng(seed).choice(len(names), size=wanted, replace=False)]
    made = []
    for copy in range(copies):
        given = dict(zip(entities, drawn[copy * len(entities) :], strict=False))
        for row in rows:
            text = swap_name(row.prompt, row.mentions[0], given[row.entity]) if row.mentions else None
            if text is not None:
                made.append(replace(row, entity=given[row.entity], prompt=text, mentions=(given[row.entity],)))
    if not made:
        raise DataError(
            "The forget rows must hold the full name of their entity in the prompt to be matched with unknown names; none does."
        )
    return made
