"""What the sources of published benchmarks share: where the files are, and how streams are made of forget and retain rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from unlearn.config.checks import check
from unlearn.config.schema import SourceConfig
from unlearn.data.anchors import REFUSALS, Wording, coin_two, invent_two, rng_for, unknown_rows, wording
from unlearn.data.checks import fingerprinted
from unlearn.data.entities import find_mention, occurrences
from unlearn.data.records import read_texts
from unlearn.data.sources.base import Source
from unlearn.data.sources.tables import Tables
from unlearn.errors import DataError
from unlearn.types import EntityData, Row

PART = 10_000_000
"""Row ids of one table lie between a multiple of this and the next."""
_GENERIC = 200
UNKNOWN_IDS, HELDOUT_IDS = 100 * PART, 101 * PART

_PIECE = re.compile(r"[A-Za-z0-9]+(?![^\W_])")
"""A word of ASCII letters: names that start otherwise are looked for letter by letter."""

Invent = Callable[[Sequence[str], int, int, np.random.Generator, Sequence[str]], tuple[list[str], list[str]]]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(SourceConfig):
    """Fields that the sources of published benchmarks share."""

    root: str | None = None
    """folder with the benchmark's own files; null downloads `hub`"""
    hub: str | None = None
    """hub id of the data set, used when root is null; null takes the benchmark's own"""
    revision: str | None = None
    """hub revision: a branch, tag or commit"""
    unseen_share: float = 0.2
    """share of the entities to be kept that no loss sees, in (0, 1)"""
    unknown_names: int = 100
    """invented names in the unknown stream, or most real unknown ones, >= 1; as many as forget entities where these are more"""
    heldout_names: int = 40
    """invented names that are only measured, or most real unknown ones, >= 1"""
    train_rows: int | None = 2000
    """most rows of the forget and of the retain stream, drawn at random, >= 1; null keeps all"""
    eval_rows: int | None = 400
    """most rows of each evaluation set, drawn at random, >= 1; null keeps all"""
    refusals: list[str] = field(default_factory=lambda: list(REFUSALS))
    """answers to questions about unknown names; an answer that starts like one of them counts as a refusal"""
    generic: str | None = None
    """text file with one general text per line, for perplexity; null takes what the benchmark offers"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.unseen_share < 1, "data.unseen_share", "in (0, 1)", self.unseen_share)
        for name in ("unknown_names", "heldout_names", "train_rows", "eval_rows"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"data.{name}", ">= 1", value)
        check(bool(self.refusals) and all(line.strip() for line in self.refusals), "data.refusals", "a list of texts", self.refusals)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Rows of a benchmark by what they are for; what is left out is derived."""

    forget: Sequence[Row]
    retain: Sequence[Row]
    """rows to train on, of which a share of the entities is held out"""
    unseen: Sequence[Row] = ()
    """rows that no loss sees; else a share of the entities of ``anchors``"""
    anchors: Sequence[Row] = ()
    """questions about known entities; else the retain rows whose question names its entity"""
    strangers: Sequence[Row] = ()
    """questions about real entities that are unknown; else invented names in the words of the known questions"""
    probes: Sequence[Row] = ()
    """rows on which recognition of the forget entities is measured; else the rows of the set ``forget_paraphrased``, or ``forget``"""
    reword: Callable[[Row], Row] = lambda row: row
    """puts a question in other words; the latent sets ask about kept and unknown entities in these words"""
    evaluation: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """evaluation sets; ``forget``, ``retain``, ``retain_unseen`` and ``unknown`` are added where they are not given"""
    holdout: Sequence[Row] = ()
    members: str = "forget"
    generic: Sequence[Row] = ()
    """rows whose text is general; else those of ``retain_unseen``"""
    invent: Invent = coin_two
    notes: Mapping[str, str] = field(default_factory=dict)


def asked(rows: Iterable[Row]) -> list[Row]:
    """Rows whose prompt names their entity."""
    return [row for row in rows if find_mention(row.prompt, "", row.mentions) is not None]


def named(row: Row, forms: Sequence[str]) -> Row:
    """The row with those ``forms`` as mentions, without any if none of them occurs in it."""
    return replace(row, mentions=tuple(forms) if find_mention(row.prompt, row.answer, forms) is not None else ())


def without(rows: Iterable[Row], names: Iterable[str]) -> list[Row]:
    """Rows that are about none of ``names`` and name none of them in their prompt."""
    wanted = {name for name in names if name}
    by_start: dict[str, list[str]] = {}
    for name in wanted:
        start = _PIECE.match(name)
        by_start.setdefault(start.group() if start else "", []).append(name)
    anywhere = by_start.pop("", [])
    kept = []
    for row in rows:
        near = [name for piece in set(_PIECE.findall(row.prompt)) for name in by_start.get(piece, ())]
        if row.entity not in wanted and not any(occurrences(row.prompt, name) for name in (*near, *anywhere)):
            kept.append(row)
    return kept


def names_of(rows: Iterable[Row]) -> set[str]:
    """Entities of ``rows`` and the fullest forms under which they are mentioned."""
    return {form for row in rows for form in (row.entity, *row.mentions[:1]) if form}


def _texts(rows: Sequence[Row]) -> tuple[str, ...]:
    """Prompt and answer of at most 200 rows, evenly spread."""
    few = [rows[i * len(rows) // _GENERIC] for i in range(_GENERIC)] if len(rows) > _GENERIC else rows
    return tuple(f"{row.prompt} {row.answer}".strip() for row in few)


def _wordings(rows: Iterable[Row]) -> dict[str, list[Wording]]:
    """The questions of each name that could be asked about anyone; names without any are absent."""
    found: dict[str, list[Wording]] = {}
    for row in rows:
        if row.kind == "qa" and (made := wording(row, row.mentions[0])):
            found.setdefault(row.mentions[0], []).append(made)
    return found


class Benchmark(Source):
    """A source of a published benchmark: ``title`` is its name, ``hub`` its id on the hub."""

    title: ClassVar[str] = ""
    hub: ClassVar[str] = ""
    origin: ClassVar[str] = ""
    Config: ClassVar[type[SourceConfig]] = BenchmarkConfig

    @property
    def settings(self) -> Any:
        """The configuration, as the source's own class."""
        return self.config

    @cached_property
    def tables(self) -> Tables:
        """The benchmark's tables, read when they are asked for."""
        c = self.settings
        return Tables(self.title, c.root, c.hub or self.hub, c.revision, self.origin)

    def where(self) -> str:
        """The benchmark's own page."""
        return self.origin or f"https://huggingface.co/datasets/{self.settings.hub or self.hub}"

    def cut(self, rows: Sequence[Row], most: int | None, purpose: str) -> tuple[Row, ...]:
        """At most ``most`` rows drawn at random, in the order in which they stand."""
        if most is None or len(rows) <= most:
            return tuple(rows)
        return tuple(rows[i] for i in sorted(rng_for(self.seed, f"rows {purpose}").permutation(len(rows))[:most]))

    def hold_out(self, rows: Sequence[Row], share: float, what: str) -> set[str]:
        """Entities of ``rows`` to hold out, drawn at random: at least one, and not all.

        Raises:
            DataError: there are fewer than two.
        """
        entities = sorted({row.entity for row in rows})
        if len(entities) < 2:
            raise DataError(f"{self.title} must offer two entities or more for {what}, one of them to be held out; found {len(entities)}.")
        count = min(max(1, round(share * len(entities))), len(entities) - 1)
        return {entities[i] for i in rng_for(self.seed, f"held-out {what}").permutation(len(entities))[:count]}

    def _kept(self, parts: Parts, forgotten: set[str]) -> tuple[list[Row], list[Row], list[Row]]:
        """Retain, known and unseen rows."""
        retain, unseen = without(parts.retain, forgotten), without(parts.unseen, forgotten)
        known = asked(without(parts.anchors, forgotten) or retain)
        if not unseen:
            heldout = self.hold_out(known, self.settings.unseen_share, "the known anchors")
            unseen = [row for row in (known if parts.anchors else retain) if row.entity in heldout]
        away = {row.entity for row in unseen}
        retain, known = ([row for row in rows if row.entity not in away] for rows in (retain, known))
        return retain, known, unseen

    def _strangers(
        self, parts: Parts, forget: Sequence[Row], known: Sequence[Row], forgotten: set[str]
    ) -> tuple[Sequence[Row], Sequence[Row]]:
        """Rows about unknown entities: to train on, at least as many as there are forget entities, and held out."""
        c = self.settings
        count = max(c.unknown_names, len({row.entity for row in asked(forget)}))
        if parts.strangers:
            rows = asked(without(parts.strangers, forgotten))
            apart = self.hold_out(rows, c.heldout_names / (c.heldout_names + count), "the unknown anchors")
            return (
                self._few([row for row in rows if row.entity not in apart], count, "unknown"),
                self._few([row for row in rows if row.entity in apart], c.heldout_names, "unknown held out"),
            )
        asking = _wordings(known)
        taken = sorted({*forgotten, *names_of((*parts.retain, *parts.unseen, *parts.anchors))})
        real = list(
            dict.fromkeys([*asking, *(row.mentions[0] for row in parts.retain if row.mentions and row.mentions[0] not in forgotten)])
        )
        train, heldout = parts.invent(real, count, c.heldout_names, rng_for(self.seed, "names"), taken)
        made = unknown_rows(train, list(asking.values()), c.refusals, rng_for(self.seed, "unknown rows"), UNKNOWN_IDS)
        again = list(_wordings(parts.reword(row) for row in known).values())
        away = unknown_rows(heldout, again, c.refusals, rng_for(self.seed, "held-out rows"), HELDOUT_IDS)
        return without(made, forgotten), without(away, forgotten)

    def _few(self, rows: Sequence[Row], most: int, purpose: str) -> list[Row]:
        """Rows of at most ``most`` entities, drawn at random."""
        entities = sorted({row.entity for row in rows})
        kept = {entities[i] for i in rng_for(self.seed, f"entities {purpose}").permutation(len(entities))[:most]}
        return [row for row in rows if row.entity in kept]

    def build(self, parts: Parts) -> EntityData:
        """Streams and sets out of the rows of a benchmark.

        Rows to be kept that are about a forget entity, or name one in their prompt, are left out; the notes say how many.
        """
        c = self.settings
        forget = self.cut(parts.forget, c.train_rows, "forget")
        shown = (*forget, *(row for name in ("forget", "forget_paraphrased") for row in parts.evaluation.get(name, ())), *parts.probes)
        forgotten = names_of(shown)
        retain, known, unseen = self._kept(parts, forgotten)
        unknown, heldout = self._strangers(parts, forget, known, forgotten)
        streams = {"forget": forget, "retain": self.cut(retain, c.train_rows, "retain"), "known": self.cut(known, c.train_rows, "known")}
        sets: dict[str, Sequence[Row]] = {
            "forget": forget,
            "retain": streams["retain"],
            "retain_unseen": unseen,
            "unknown": heldout,
            **parts.evaluation,
        }
        for name in ("retain", "retain_unseen", "unknown"):
            sets[name] = without(sets[name], forgotten)
        order = ("forget", "forget_paraphrased", "retain", "retain_unseen", "unknown")
        sets = {name: self.cut(sets[name], c.eval_rows, f"evaluation {name}") for name in sorted(sets, key=lambda n: _place(n, order))}
        probes = parts.probes or sets.get("forget_paraphrased", ()) or sets["forget"]
        dropped = len(parts.retain) - len(without(parts.retain, forgotten))
        data = EntityData(
            streams={**streams, "unknown": tuple(unknown)},
            evaluation={name: tuple(rows) for name, rows in sets.items() if rows},
            latent={
                name: self.cut(rows, c.eval_rows, f"latent {name}")
                for name, rows in (
                    ("forget", asked(probes) or asked(forget)),
                    ("known", asked(map(parts.reword, unseen))),
                    ("unknown", asked(map(parts.reword, heldout))),
                )
            },
            generic=_texts(parts.generic or sets["retain_unseen"]) if c.generic is None else read_texts(Path(c.generic).expanduser()),
            refusals=tuple(c.refusals),
            fingerprint="",
            holdout=self.cut(parts.holdout, c.eval_rows, "holdout"),
            members=parts.members,
            notes={
                "unknown": "real entities" if parts.strangers else "invented names in the words of the known questions",
                "retain rows left out because they name a forget entity": str(dropped),
                **parts.notes,
            },
        )
        return fingerprinted(data)


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order)), name


def people(real: Sequence[str], train: int, heldout: int, rng: np.random.Generator, taken: Sequence[str]) -> tuple[list[str], list[str]]:
    """Invented names of people, see ``invent_two``."""
    return invent_two(real, train, heldout, rng, taken)
