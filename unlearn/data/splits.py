"""Which fact a row is about, and which facts are taught when others are to be asked for."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from unlearn.errors import DataError
from unlearn.functional.text import normalise_answer
from unlearn.types import Row


class fact_keys:  # noqa: N801 used as a function
    """``fact_keys(rows)(row)``: which fact a row is about: its attribute where that has one answer for each entity, else its answer."""

    def __init__(self, rows: Sequence[Row]) -> None:
        answers: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in rows:
            answers[row.entity, row.attribute].add(normalise_answer(row.answer))
        several = {attribute for (_, attribute), found in answers.items() if len(found) > 1}
        self.attributes = {row.attribute for row in rows} - several - {""}

    def __call__(self, row: Row) -> str:
        """The fact's name, the same in every wording."""
        return row.attribute if row.attribute in self.attributes else f"= {normalise_answer(row.answer)}"


def fact_splits(
    rows: Sequence[Row], key: Callable[[Row], str], entities: Iterable[str], share: float, count: int, seed: int
) -> Iterator[dict[str, frozenset[str]]]:
    """``count`` choices of the facts to be taught, by entity; the others are asked for.

    Where entities share their attributes, the same ones are taught for all, and different ones in every choice as long as there are; else
    they are drawn for each entity.

    Args:
        rows: rows that may be taught.
        key: which fact a row is about (``fact_keys``).
        entities: whose facts.
        share: of an entity's facts to be taught, in (0, 1); at least one, and one is left.
        count: choices, >= 1.
        seed: seed of the draw.

    Raises:
        DataError: no entity has two facts.
    """
    by_entity = {name: sorted({key(row) for row in rows if row.entity == name}) for name in entities}
    by_entity = {name: keys for name, keys in by_entity.items() if len(keys) >= 2}
    if not by_entity:
        raise DataError("Relearning must have two facts or more about an entity, some to teach and others to ask for; found none.")
    rng = np.random.default_rng(seed)

    def taught(keys: Sequence[str]) -> int:
        return min(len(keys) - 1, max(1, round(share * len(keys))))

    if len(set(map(tuple, by_entity.values()))) == 1:
        keys = next(iter(by_entity.values()))
        every = list(itertools.islice(itertools.combinations(keys, taught(keys)), 10_000))
        order = rng.permutation(len(every))
        for n in range(count):
            yield dict.fromkeys(by_entity, frozenset(every[order[n % len(every)]]))
        return
    for _ in range(count):
        yield {name: frozenset(rng.permutation(keys)[: taught(keys)].tolist()) for name, keys in by_entity.items()}
