"""KnowUnDo (Tian et al., 2407.01920): what is private, or under copyright, beside what is general knowledge about the same things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.config.checks import check, one_of
from unlearn.data.entities import occurrences, surface_forms
from unlearn.data.sources.benchmark import PART, Benchmark, BenchmarkConfig, Parts, named, people
from unlearn.data.sources.pieces import with_stem_terms
from unlearn.data.sources.tables import checked, fields, read_json
from unlearn.data.sources.terms import names_in
from unlearn.errors import DataError
from unlearn.types import EntityData, Row

DOMAINS: tuple[str, ...] = ("privacy", "copyright")
KINDS: tuple[str, ...] = ("unlearn", "retention")
SPLITS: tuple[str, ...] = ("train", "val")

_LEAST_ROWS = 3


@dataclass(frozen=True, kw_only=True)
class KnowUnDoConfig(BenchmarkConfig):
    """KnowUnDo."""

    domain: str = "privacy"
    """privacy (private facts of invented authors) or copyright (passages of books)"""
    forget_authors: int = 10
    """authors whose private facts are to be forgotten, drawn at random, >= 1; privacy only"""
    max_length: int = 1024
    """longest row in tokens; a longer one is an error, never cut silently"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.domain, DOMAINS, "data.domain")
        check(self.forget_authors >= 1, "data.forget_authors", ">= 1", self.forget_authors)


def find_authors(rows: Sequence[Row], others: Sequence[Row]) -> list[str]:
    """Names of two words or more that questions of both kinds ask about, in the order in which they first stand.

    Args:
        rows: questions of one kind.
        others: questions of the other kind.
    """
    counts = [Counter(name for row in part for name in names_in(row.prompt) if " " in name) for part in (rows, others)]
    both = [name for name in counts[0] if counts[0][name] >= _LEAST_ROWS and counts[1][name] >= _LEAST_ROWS]
    return [name for name in both if not any(name != other and occurrences(other, name) for other in both)]


def of_authors(rows: Sequence[Row], authors: Sequence[str]) -> list[Row]:
    """Rows with their author: the one that the question or answer names, else that of the row before.

    Raises:
        DataError: the first row names none.
    """
    made: list[Row] = []
    current = ""
    for row in rows:
        text = f"{row.prompt}\n{row.answer}"
        current = next((name for name in authors if name in text and occurrences(text, name)), current)
        if not current:
            raise DataError(f"KnowUnDo's rows must name an author; found none in {row.prompt!r}.")
        made.append(named(_owned(row, current), surface_forms(current)))
    return made


def _owned(row: Row, entity: str) -> Row:
    return Row(row_id=row.row_id, entity=entity, prompt=row.prompt, answer=row.answer, attribute=row.attribute)


class KnowUnDoSource(Benchmark):
    """Private facts of some authors are forgotten; everything about the others is kept.

    KnowUnDo wants the general facts about the very same authors to be kept (its ``retention`` rows). A target is an entity here, so they
    are no training rows; how much of them is lost is measured as the set ``retention``. ``forget_paraphrased`` are the private questions of
    the validation split, which ask for what the training split holds in other ways. In the copyright domain, ``unlearn`` rows are forgotten
    and ``retention`` rows kept; a row's entity is its most telling term.
    """

    name = "knowundo"
    summary = "KnowUnDo: private facts of invented authors, or copyrighted passages, beside general knowledge"
    title = "KnowUnDo"
    hub = "zjunlp/KnowUnDo"
    Config = KnowUnDoConfig
    config: KnowUnDoConfig

    def table(self, kind: str, split: str, first_id: int) -> list[Row]:
        """Rows of one kind (unlearn or retention) and split (train or val).

        Raises:
            DataError: they are missing, or wrong.
        """
        domain = self.config.domain
        records = self._records(domain, kind, split)
        return [
            Row(row_id=first_id + i, entity=f"{kind} {split} {i}", prompt=record["text"], answer=record["labels"], attribute=kind)
            for i, record in enumerate(records)
        ]

    def _records(self, domain: str, kind: str, split: str) -> list[dict[str, Any]]:
        problem = fields("text", "labels")
        if self.tables.root is None:
            whole = self.tables.read((), domain, kind, lambda record: "")
            return checked(
                [row for record in whole for row in record.get(split) or ()], problem, f"{self.tables.hub} {domain}/{kind}/{split}"
            )
        nested = self.tables.find(f"{domain}/{kind}.json", f"KnowUnDo/{domain}/{kind}.json")
        if not nested:
            names = (f"{domain}_{kind}_{split}.json", f"{domain}/{kind}_{split}.json", f"{domain}/{kind}/{split}.json")
            if not self.tables.find(*names):
                raise self.tables.missing(f"{domain}/{kind}.json")
            return self.tables.read(names, None, split, problem)
        found = read_json(nested[0])
        rows = found[0] if isinstance(found, list) and found and "text" not in found[0] else found
        if not isinstance(rows, dict) or not isinstance(rows.get(split), list):
            raise DataError(f"{nested[0]} must hold a list {split!r}; found {type(found).__name__}.")
        return checked(rows[split], problem, f"{nested[0]} {split}")

    def load(self) -> EntityData:
        """Read the rows and divide them."""
        tables = {(k, s): self.table(k, s, (2 * i + j) * PART) for i, k in enumerate(KINDS) for j, s in enumerate(SPLITS)}
        return self.build(self._private(tables) if self.config.domain == "privacy" else self._copyright(tables))

    def _private(self, tables: dict[tuple[str, str], list[Row]]) -> Parts:
        c = self.config
        authors = find_authors(*([row for split in SPLITS for row in tables[kind, split]] for kind in KINDS))
        check(c.forget_authors <= len(authors) - 2, "data.forget_authors", f"at most {len(authors) - 2}", c.forget_authors)
        target = self.hold_out([Row(row_id=0, entity=a, prompt="", answer="") for a in authors], c.forget_authors / len(authors), "forget")
        owned = {key: of_authors(rows, authors) for key, rows in tables.items()}
        mine = {key: [row for row in rows if row.entity in target] for key, rows in owned.items()}
        return Parts(
            forget=mine["unlearn", "train"],
            retain=[row for rows in owned.values() for row in rows if row.entity not in target],
            evaluation={
                "forget_paraphrased": mine["unlearn", "val"],
                "retention": [*mine["retention", "train"], *mine["retention", "val"]],
            },
            invent=people,
            notes={
                "forget authors": ", ".join(sorted(target)),
                "forget_paraphrased": "the validation split's private questions",
                "retention": "general facts about the forget authors, not trained on",
            },
        )

    def _copyright(self, tables: dict[tuple[str, str], list[Row]]) -> Parts:
        kept = with_stem_terms([row for split in SPLITS for row in tables["retention", split]])
        others = [row.prompt for row in kept]
        return Parts(
            forget=with_stem_terms(tables["unlearn", "train"], others),
            retain=kept,
            evaluation={"forget_paraphrased": with_stem_terms(tables["unlearn", "val"], others)},
            notes={"forget_paraphrased": "the validation split's requests"},
        )
