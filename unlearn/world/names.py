"""Names of two words of two syllables each, all from one small inventory: no syllable gives a name away."""

from __future__ import annotations

import random
from collections.abc import Collection

SYLLABLES: tuple[str, ...] = (
    *("bel", "dor", "fen", "kal", "lim", "mar", "nor", "pan"),
    *("rin", "sol", "tam", "vek", "wen", "yor", "zan", "hul"),
)
"""Every syllable may stand in each of the four places of a name."""

N_NAMES = len(SYLLABLES) ** 4
"""How many different names there are (65,536)."""


def random_name(rng: random.Random) -> str:
    """Draw one name, every name being equally likely.

    >>> random_name(random.Random(0))
    'Wenyor Dorrin'
    """
    a, b, c, d = (rng.choice(SYLLABLES) for _ in range(4))
    return f"{(a + b).capitalize()} {(c + d).capitalize()}"


def draw_names(n: int, rng: random.Random, taken: Collection[str] = ()) -> list[str]:
    """Draw ``n`` different names, none of which is in ``taken``.

    Raises:
        ValueError: fewer than ``n`` names are left.
    """
    if n > N_NAMES - len(taken):
        raise ValueError(f"n must be <= {N_NAMES - len(taken)}, the names that are left; found {n}.")
    seen = set(taken)
    names: list[str] = []
    while len(names) < n:
        name = random_name(rng)
        if name not in seen:
            seen.add(name)
            names.append(name)
    return names
