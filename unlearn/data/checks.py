"""What must hold between the streams and sets of a source before anything is trained on them, and the fingerprint of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from unlearn.data.entities import occurrences
from unlearn.errors import DataError
from unlearn.types import STREAMS, EntityData, Row

_LISTED = 5
_KEPT = ("retain", "retain_unseen", "unknown")
_LATENT = ("forget", "known", "unknown")
_HELD_OUT = (("evaluation", "retain_unseen"), ("evaluation", "unknown"), ("latent", "known"), ("latent", "unknown"))


def sets_of(data: EntityData) -> Iterator[tuple[str, str, Sequence[Row]]]:
    """Every set of rows as (part, name, rows); part is ``streams``, ``evaluation`` or ``latent``."""
    for part in ("streams", "evaluation", "latent"):
        for name, rows in getattr(data, part).items():
            yield part, name, rows


def _few(names: Iterable[str]) -> str:
    listed = sorted(set(names))
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _empty(data: EntityData) -> Iterator[str]:
    for name in STREAMS:
        if not data.streams.get(name):
            yield f"Stream {name} must hold rows; found none."
    for name in _LATENT:
        if not data.latent.get(name):
            yield f"Latent set {name} must hold rows that name their entity; found none."
    for name in sorted(set(data.streams) - set(STREAMS)):
        yield f"Streams must be {', '.join(STREAMS)}; found {name!r} too."


def _clashes(data: EntityData) -> Iterator[str]:
    seen: dict[int, Row] = {}
    clash: dict[int, tuple[Row, Row]] = {}
    for _, _, rows in sets_of(data):
        for row in rows:
            first = seen.setdefault(row.row_id, row)
            if first is not row and first != row:
                clash.setdefault(row.row_id, (first, row))
    if clash:
        pairs = "; ".join(f"{i}: {a.prompt!r} and {b.prompt!r}" for i, (a, b) in list(clash.items())[:_LISTED])
        yield f"A row id must stand for one row; {len(clash)} ids stand for several: {pairs}."


def forms_of(rows: Iterable[Row]) -> set[str]:
    """Names of the entities of ``rows``: the entity itself and the fullest form under which a row mentions it."""
    return {form for row in rows for form in (row.entity, *row.mentions[:1]) if form}


def owner_of(row: Row, names: Collection[str]) -> str:
    """The name among ``names`` that ``row`` is about, or an empty string."""
    if row.entity in names:
        return row.entity
    return next((name for name in names if name in row.prompt and occurrences(row.prompt, name)), "")


def _overlaps(data: EntityData) -> Iterator[str]:
    """Forget entities that own, or are named in the prompt of, a row that must be kept or is an anchor."""
    names = forms_of(data.streams.get("forget", ()))
    for part, name, rows in sets_of(data):
        if name == "forget" or (part == "evaluation" and name not in _KEPT):
            continue
        hits = [owner for row in rows if (owner := owner_of(row, names))]
        if hits:
            yield f"Forget entities must not occur in {part} {name}; {len(hits)} rows are about {_few(hits)}."


def _leaks(data: EntityData) -> Iterator[str]:
    """Entities that a measurement calls unseen although a stream trains on them."""
    trained = {row.entity for rows in data.streams.values() for row in rows if row.entity}
    for part, name in _HELD_OUT:
        hits = [row.entity for row in getattr(data, part).get(name, ()) if row.entity in trained]
        if hits:
            yield f"Entities of {part} {name} must be in no stream; {len(hits)} rows are about {_few(hits)}."


def check_streams(data: EntityData) -> None:
    """Refuse data on which results would mean something else than they say.

    Forget entities must neither own a row nor be named in a prompt of the other streams, of the evaluation sets ``retain``,
    ``retain_unseen`` and ``unknown``, or of the latent sets ``known`` and ``unknown``. Entities that are measured as unseen must be in no
    stream. Every stream and latent set holds rows, and a row id stands for one row.

    Raises:
        DataError: one sentence for each problem, each with the first five names.
    """
    problems = [*_empty(data), *_clashes(data), *_overlaps(data), *_leaks(data)]
    if problems:
        raise DataError("\n".join(problems))


def fingerprinted(data: EntityData) -> EntityData:
    """``data`` with ``fingerprint`` set to the hash of everything it serves (its notes aside), 16 hex digits."""
    digest = hashlib.sha256()
    for part, name, rows in sets_of(data):
        digest.update(repr((part, name, rows)).encode())
    digest.update(repr((data.generic, data.refusals, data.holdout, data.members)).encode())
    return replace(data, fingerprint=digest.hexdigest()[:16])


def summary(data: EntityData) -> Mapping[str, str]:
    """Rows and entities of every set, for the manifest: ``{"streams/forget": "400 rows, 20 entities", ...}``."""
    return {f"{part}/{name}": f"{len(rows)} rows, {len({row.entity for row in rows})} entities" for part, name, rows in sets_of(data)}
