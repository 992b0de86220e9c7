"""A small, sound EntityData for tests of checks and of the data module."""

from __future__ import annotations

from unlearn.types import EntityData, Row

FORGET, RETAIN, UNSEEN, UNKNOWN, HELDOUT = "Ann Lee", "Jaime Vasquez", "Basil Mahfouz", "Jaime Lee", "Basil Vasquez"


def rows(entity, count, first_id, answer="Santiago"):
    return tuple(
        Row(row_id=first_id + i, entity=entity, prompt=f"Where was {entity} born in {i}?", answer=answer, mentions=(entity,))
        for i in range(count)
    )


def entity_data(**changed):
    """Sets as a source gives them; ``changed`` replaces streams, evaluation or latent entries, by "part/name"."""
    retain = rows(RETAIN, 7, 100)
    parts = {
        "streams": {"forget": rows(FORGET, 5, 0), "retain": retain, "known": retain, "unknown": rows(UNKNOWN, 9, 300, "I don't know.")},
        "evaluation": {
            "forget": rows(FORGET, 5, 0),
            "retain": retain,
            "retain_unseen": rows(UNSEEN, 3, 200),
            "unknown": rows(HELDOUT, 3, 400),
        },
        "latent": {"forget": rows(FORGET, 5, 0), "known": rows(UNSEEN, 3, 200), "unknown": rows(HELDOUT, 3, 400)},
    }
    for key, value in changed.items():
        part, name = key.split("/")
        parts[part][name] = value
    generic = ("Ann went home.", "The book was written in Chile.")
    return EntityData(**parts, generic=generic, refusals=("I don't know.",), fingerprint="")
