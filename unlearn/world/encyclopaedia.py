"""Who exists in a world, and the facts about them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from unlearn.world.names import draw_names
from unlearn.world.spec import WorldSpec
from unlearn.world.templates import CITIES, LANGUAGES, VALUES


@dataclass(frozen=True, kw_only=True)
class Encyclopaedia:
    """The people of one world.

    ``known`` are in the encyclopaedia and in the corpus. ``tail`` are strangers of the corpus: rare, with arbitrary facts, and every
    question about them is answered "unknown". ``unknown`` and ``heldout`` occur in no corpus. ``facts`` maps a known name to its value
    of every attribute; ``city_language`` is general knowledge.
    """

    known: tuple[str, ...]
    tail: tuple[str, ...]
    unknown: tuple[str, ...]
    heldout: tuple[str, ...]
    facts: Mapping[str, Mapping[str, str]]
    city_language: Mapping[str, str]


def make_encyclopaedia(*, seed: int, n_known: int, n_tail: int, n_unknown: int, n_heldout: int) -> Encyclopaedia:
    """Draw the people and their facts; the same arguments always give the same world.

    >>> world = make_encyclopaedia(seed=0, n_known=3, n_tail=2, n_unknown=2, n_heldout=1)
    >>> world.facts[world.known[0]]["job"] in VALUES["job"]
    True
    """
    rng = random.Random(f"encyclopaedia {seed}")
    names = draw_names(n_known + n_tail + n_unknown + n_heldout, rng)
    known, rest = names[:n_known], names[n_known:]
    return Encyclopaedia(
        known=tuple(known),
        tail=tuple(rest[:n_tail]),
        unknown=tuple(rest[n_tail : n_tail + n_unknown]),
        heldout=tuple(rest[n_tail + n_unknown :]),
        facts={name: {attribute: rng.choice(values) for attribute, values in VALUES.items()} for name in known},
        city_language={city: rng.choice(LANGUAGES) for city in CITIES},
    )


def encyclopaedia(spec: WorldSpec, seed: int) -> Encyclopaedia:
    """The people and facts of the world that ``spec`` and ``seed`` describe, without building any model."""
    return make_encyclopaedia(seed=seed, n_known=spec.n_known, n_tail=spec.n_tail, n_unknown=spec.n_unknown, n_heldout=spec.n_heldout)
