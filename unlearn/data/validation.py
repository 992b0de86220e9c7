"""Rows for tuning, taken out of what a source trains on, so that tuning sees nothing that the test measures.

The test's rows stay as they are. Validation cuts its own targets, unseen entities, unknown names and wordings out of the *training*
streams of the test: the test's targets, its unseen entities, its held-out unknown names and its held-out wordings occur nowhere in what
comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from unlearn.data.anchors import rng_for
from unlearn.data.checks import fingerprinted, forms_of, owner_of
from unlearn.data.entities import find_mention
from unlearn.errors import DataError
from unlearn.types import EntityData, Row

SHARE = 0.2
"""Share of the retain entities that no loss sees, of unknown names held out, and of an entity's rows where no wording can be held out."""
LEAST = 2
"""Fewest entities that must be left to retain, be unseen, or be unknown and held out."""
MOST = 200
"""Most rows of an evaluation set, evenly spread over it; the sets of the targets are whole."""
TEXTS = 20
"""Fewest texts about nobody in the retain stream that are divided; with fewer the test's generic texts serve."""


@dataclass(frozen=True)
class _Cut:
    """Who has which part in validation, and which wordings are held out."""

    forget: frozenset[str]
    unseen: frozenset[str]
    strangers: frozenset[str]
    heldout: Callable[[Row], bool]


def validation(data: EntityData, seed: int) -> EntityData:
    """``data`` for tuning: other targets, unseen entities, held-out names and held-out wordings, none of which the test measures.

    As many entities are forgotten as in the test, at most a third of the retain entities that are asked about by name, from which they are
    drawn. A fifth of the retain entities are in no loss. A fifth of the names of the unknown stream are held out. Where an attribute has
    several templates, the last one is held out of all streams; where none has, the last fifth of the rows of every entity that is
    measured. Rows that name a validation target but belong to somebody else are left out, as are evaluation sets of the source's own and
    ``holdout``.

    Args:
        data: what the source serves for the test.
        seed: seed of the division.

    Raises:
        DataError: the source has too few entities; the message says how many there are.
    """
    retain = data.streams["retain"]
    cut = _divide(data, seed)
    texts = [row for row in retain if not row.entity and row.kind == "text"]
    measured_texts = texts[: min(len(data.generic), len(texts) // 2)] if len(texts) >= TEXTS else []
    aside = {row.row_id for row in measured_texts}
    gone = cut.forget | cut.unseen

    def kept(rows: Iterable[Row], without: frozenset[str]) -> tuple[Row, ...]:
        found = (row for row in rows if row.entity not in without and row.row_id not in aside and not cut.heldout(row))
        return tuple(row for row in found if not owner_of(row, named))

    def of(rows: Iterable[Row], names: frozenset[str]) -> list[Row]:
        return [row for row in rows if row.entity in names and not owner_of(row, named)]

    own = [row for row in retain if row.entity in cut.forget]
    named = forms_of(own)
    unseen, strangers = of(retain, cut.unseen), of(data.streams["unknown"], cut.strangers)
    streams = {
        "forget": tuple(row for row in own if not cut.heldout(row)),
        "retain": kept(retain, gone),
        "known": kept(data.streams["known"], gone),
        "unknown": kept(data.streams["unknown"], cut.strangers),
    }
    reworded, stay = [row for row in own if cut.heldout(row)], of(retain, frozenset(row.entity for row in streams["retain"] if row.entity))
    sets = {
        "forget": [row for row in streams["forget"] if row.kind == "qa"] or _asked_of(streams["forget"]),
        "forget_paraphrased": [row for row in reworded if row.kind != "mention"],
        "retain": _evenly(_asked_of(stay)),
        "retain_unseen": _evenly(_asked_of(unseen)),
        "unknown": _evenly([row for row in strangers if row.kind == "qa"] or strangers),
    }
    latent = {"forget": _named(own, cut.heldout), "known": _named(unseen, cut.heldout), "unknown": _named(strangers, cut.heldout)}
    if empty := [name for part in (streams, latent) for name, rows in part.items() if not rows]:
        raise DataError(
            f"data.partition=validation needs entities that are not named in each other's rows; found none left for {empty[0]} once "
            f"the rows that name {len(cut.forget)} targets are left out."
        )
    made = replace(
        data,
        streams=streams,
        evaluation={name: tuple(rows) for name, rows in sets.items() if rows},
        latent=latent,
        generic=tuple(row.answer for row in measured_texts) or data.generic,
        holdout=(),
        members="forget",
        notes={
            **data.notes,
            "forgotten": ", ".join(sorted(cut.forget)),
            "partition": "validation: entities, names and wordings of the test's training streams",
            "other words": "held-out templates, or questions where there are none" if reworded else "none: an entity has too few rows",
            "generic": "texts of the retain stream" if measured_texts else "the test's",
        },
    )
    return fingerprinted(made)


def _divide(data: EntityData, seed: int) -> _Cut:
    """Draw who is forgotten, unseen, and unknown and held out.

    Raises:
        DataError: there are too few.
    """
    forgotten = {row.entity for row in data.streams["forget"] if row.entity}
    everyone = _entities(data.streams["retain"])
    asked = {row.entity for row in (*data.streams["retain"], *data.streams["known"]) if _is_asked(row)}
    n_unseen = max(LEAST, round(SHARE * len(everyone)))
    able = [name for name in everyone if name in asked]
    n_forget = max(1, min(len(forgotten), len(able) // 3))
    needed = n_forget + n_unseen
    if len(able) < needed or len(everyone) < needed + LEAST:
        raise DataError(
            f"data.partition=validation needs {needed + LEAST} retain entities that are asked about by name: {n_forget} to forget, "
            f"{n_unseen} to hold out and {LEAST} to keep; found {len(able)} of {len(everyone)}."
        )
    order = [able[i] for i in rng_for(seed, "validation entities").permutation(len(able))]
    names = _entities(row for row in data.streams["unknown"] if _is_asked(row))
    if len(names) < 2 * LEAST:
        raise DataError(f"data.partition=validation needs {2 * LEAST} unknown names, {LEAST} of them to hold out; found {len(names)}.")
    drawn = rng_for(seed, "validation names").permutation(len(names))[: max(LEAST, round(SHARE * len(names)))]
    forget, unseen = frozenset(order[:n_forget]), frozenset(order[n_forget:needed])
    strangers = frozenset(names[i] for i in drawn)
    return _Cut(forget, unseen, strangers, _heldout(data, forget | unseen))


def _heldout(data: EntityData, measured: frozenset[str]) -> Callable[[Row], bool]:
    """Which rows have a held-out wording: the last template of an attribute with several, else the last rows of who is measured."""
    templates: dict[str, dict[str, None]] = {}
    for row in data.streams["retain"]:
        if row.attribute and row.template:
            templates.setdefault(row.attribute, {})[row.template] = None
    last = {(attribute, list(found)[-1]) for attribute, found in templates.items() if len(found) > 1}
    if last:
        return lambda row: (row.attribute, row.template) in last
    rows = sorted((row for row in data.streams["retain"] if row.entity in measured and _is_asked(row)), key=lambda row: row.entity)
    ids = set()
    for _, group in groupby(rows, key=lambda row: row.entity):
        own = [row.row_id for row in group]
        ids.update(own[len(own) - round(SHARE * len(own)) :])
    return lambda row: row.row_id in ids


def _entities(rows: Iterable[Row]) -> list[str]:
    """Entities in the order in which they come."""
    return list(dict.fromkeys(row.entity for row in rows if row.entity))


def _is_asked(row: Row) -> bool:
    """Whether the prompt names the entity."""
    return bool(row.mentions) and find_mention(row.prompt, "", row.mentions) is not None


def _asked_of(rows: Sequence[Row]) -> list[Row]:
    """What a model is asked: questions and stems; mentions, which state no fact, where there is nothing else."""
    return [row for row in rows if row.kind in ("qa", "statement")] or list(rows)


def _named(rows: Sequence[Row], heldout: Callable[[Row], bool]) -> tuple[Row, ...]:
    """Rows at whose names recognition is measured: on held-out wordings where there are any."""
    named = [row for row in rows if _is_asked(row) and row.kind != "mention"]
    return tuple([row for row in named if heldout(row)] or named)


def _evenly(rows: Sequence[Row]) -> list[Row]:
    """At most ``MOST`` rows, evenly spread."""
    return [rows[i * len(rows) // MOST] for i in range(MOST)] if len(rows) > MOST else list(rows)
