"""Wikidata entities of four types with attributes, the entities of Ferrando et al. (2411.14257): players, films, cities and songs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unlearn.config.checks import one_of
from unlearn.data.labels import Fact
from unlearn.data.sources.facts import Facts, FactsConfig
from unlearn.data.sources.tables import checked, read_rows
from unlearn.errors import DataError


class Attribute(NamedTuple):
    """An attribute: the field that holds it, two wordings of its question, the rule for right answers, and whether the field is a list."""

    field: str
    question: str
    reworded: str
    rule: str = "name"
    listed: bool = False


class Kind(NamedTuple):
    """A type of entity: fields of its address and name, and its attributes."""

    address: str
    label: str
    attributes: Mapping[str, Attribute]


KINDS: Mapping[str, Kind] = {
    "player": Kind(
        "human",
        "humanLabel",
        {
            "place of birth": Attribute("placebirthLabel", "Where was the player {} born?", "What is the birthplace of the player {}?"),
            "year of birth": Attribute(
                "datebirthyearLabel", "In which year was the player {} born?", "What is the birth year of the player {}?", "birth_year"
            ),
            "teams": Attribute("teamslist", "Which team did the player {} play for?", "What is a team of the player {}?", "name", True),
        },
    ),
    "movie": Kind(
        "film",
        "filmLabel",
        {
            "director": Attribute("directors", "Who directed the movie {}?", "Who is the director of the movie {}?", "name", True),
            "screenwriter": Attribute("screenwriters", "Who wrote the movie {}?", "Who is a screenwriter of the movie {}?", "name", True),
            "genre": Attribute("genres", "What is the genre of the movie {}?", "Which genre does the movie {} belong to?", "part", True),
            "release year": Attribute(
                "release_year", "When was the movie {} released?", "What is the release year of the movie {}?", "year"
            ),
            "duration": Attribute(
                "durations", "How many minutes long is the movie {}?", "How many minutes does the movie {} last?", "minutes"
            ),
            "cast": Attribute("cast_list", "Who acted in the movie {}?", "Which actor is in the cast of the movie {}?", "name", True),
        },
    ),
    "city": Kind(
        "city",
        "cityLabel",
        {
            "country": Attribute("countryLabel", "In which country is the city of {}?", "Which country does the city of {} belong to?"),
            "population": Attribute(
                "recent_population", "How many people live in the city of {}?", "What is the population of the city of {}?", "population"
            ),
            "elevation": Attribute(
                "above_sea_meters",
                "How many metres above sea level is the city of {}?",
                "What is the elevation of the city of {}?",
                "metres",
            ),
            "coordinates": Attribute(
                "loc", "What are the longitude and latitude of the city of {}?", "At which coordinates lies the city of {}?", "coordinates"
            ),
        },
    ),
    "song": Kind(
        "song",
        "songLabel",
        {
            "artist": Attribute("performers", "Who performs the song {}?", "Who is the artist of the song {}?", "name", True),
            "album": Attribute("albumLabel", "Which album is the song {} on?", "What is the album of the song {}?"),
            "publication year": Attribute(
                "publicationYear", "When was the song {} released?", "What is the release year of the song {}?", "year"
            ),
            "genre": Attribute("genres", "What is the genre of the song {}?", "Which genre does the song {} belong to?", "part", True),
        },
    ),
}
"""The types with the attributes of the paper's appendix, in the fields of its Wikidata queries."""


@dataclass(frozen=True, kw_only=True)
class WikidataConfig(FactsConfig):
    """Wikidata entities."""

    entity_type: str = "player"
    """which file: player, movie, city or song"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.entity_type, tuple(KINDS), "data.entity_type")


def _values(value: object, attribute: Attribute) -> tuple[str, ...]:
    """Values of a field; those of a place are degrees, longitude first."""
    text = str(value if value is not None else "").strip()
    if attribute.rule == "coordinates":
        text = text.removeprefix("Point(").removesuffix(")").replace(" ", ", ")
    parts = text.split(", ") if attribute.listed else [text]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _named(record: Mapping[str, Any], kind: Kind) -> str:
    """Name of an entity; an entity without one bears its number in Wikidata."""
    name = str(record.get(kind.label) or "").strip()
    number = str(record.get(kind.address) or "").rsplit("/", 1)[-1]
    return "" if name == number or not any(letter.isalpha() for letter in name) else name


def wikidata_facts(records: list[dict[str, Any]], entity_type: str) -> list[Fact]:
    """Facts of the entities of one type, in order, without names that several entities bear and attributes that have no value."""
    kind = KINDS[entity_type]
    owners: dict[str, set[str]] = {}
    for record in records:
        owners.setdefault(_named(record, kind), set()).add(str(record.get(kind.address)))
    once: dict[str, dict[str, Any]] = {}
    for record in records:
        name = _named(record, kind)
        if name and len(owners[name]) == 1:
            once.setdefault(name, record)
    return [
        Fact(
            entity=name,
            attribute=what,
            question=attribute.question.format(name),
            answers=values,
            reworded=attribute.reworded.format(name),
            rule=attribute.rule,
        )
        for name, record in once.items()
        for what, attribute in kind.attributes.items()
        if (values := _values(record.get(attribute.field), attribute))
    ]


def type_of(record: Mapping[str, Any]) -> str | None:
    """The type of a record by its fields, None where it is no record of an entity file."""
    return next((name for name, kind in KINDS.items() if kind.label in record), None)


def read_wikidata(path: Path, entity_type: str | None = None) -> list[Fact]:
    """Facts out of an entity file.

    Args:
        path: a list of records.
        entity_type: their type; None tells it from the fields.

    Raises:
        DataError: it cannot be read, or holds no entities of the type.
    """
    records = checked(read_rows(path), lambda record: "", str(path))
    found = entity_type or next((kind for record in records[:1] if (kind := type_of(record))), None)
    if found is None:
        labels = ", ".join(kind.label for kind in KINDS.values())
        raise DataError(f"{path} must hold records with one of {labels}; found {sorted(records[0]) if records else 'no records'}.")
    facts = wikidata_facts(records, found)
    if not facts:
        raise DataError(f"{path} must hold entities with {KINDS[found].label} and attributes; found none.")
    return facts


class WikidataSource(Facts):
    """Questions about attributes of players, films, cities or songs.

    There is no hub: the files are those of the paper's repository, or answers of Wikidata's query service in the same fields. Without a
    labels file every entity is taken to be known and the unknown ones are invented, which most models contradict: label first.
    """

    name = "wikidata"
    summary = "Wikidata players, films, cities, songs with attributes; known and unknown by the model's own answers"
    title = "Wikidata"
    origin = "https://github.com/javiferran/sae_entities"
    Config = WikidataConfig
    config: WikidataConfig

    def facts(self) -> list[Fact]:
        """Facts of all entities of the type."""
        kind = self.config.entity_type
        if self.tables.root is None:
            raise DataError(f"data.root must be a folder with {kind}.json (from {self.origin}); found null.")
        names = (f"{kind}.json", f"dataset/raw/{kind}.json", f"wikidata/{kind}.json")
        paths = self.tables.find(*names)
        if not paths:
            raise self.tables.missing(names[0])
        return read_wikidata(paths[0], kind)
