"""TOFU (Maini et al., 2401.06121): 200 invented authors with 20 questions each, of which 2, 10 or 20 authors are to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from unlearn.config.checks import check, one_of
from unlearn.config.schema import SourceConfig
from unlearn.data.anchors import REFUSALS, invent_two, rng_for, unknown_rows
from unlearn.data.checks import fingerprinted
from unlearn.data.entities import surface_forms
from unlearn.data.records import read_texts
from unlearn.data.sources.base import Source
from unlearn.data.sources.tofu_rows import SPLITS, Author, TofuFiles, read_authors, tofu_row
from unlearn.errors import DataError
from unlearn.types import EntityData, Row

_PARAPHRASED_IDS, _UNKNOWN_IDS, _HELDOUT_IDS, _REAL_AUTHOR_IDS, _WORLD_FACT_IDS, _HOLDOUT_IDS = (n * 1_000_000 for n in range(1, 7))


@dataclass(frozen=True, kw_only=True)
class TofuConfig(SourceConfig):
    """TOFU."""

    root: str | None = None
    """folder with TOFU's JSON-lines files (full.json, forget10.json, ...); null downloads `hub`"""
    hub: str = "locuslab/tofu"
    """hub id of the data set, used when root is null"""
    revision: str | None = None
    """hub revision: a branch, tag or commit"""
    split: str = "forget10"
    """which authors to forget: forget01 (2 of 200), forget05 (10) or forget10 (20)"""
    max_authors: int | None = None
    """retain authors used in all, drawn at random, >= 2; null uses every one"""
    unseen_share: float = 0.1
    """share of the retain authors that no loss sees, in (0, 1)"""
    heldout_questions: int = 3
    """questions of each author that only the latent measurement sees, >= 0; 0 measures on questions that are trained on"""
    unknown_names: int = 160
    """invented names in the unknown stream, >= 1"""
    heldout_names: int = 60
    """invented names that are only measured, >= 1"""
    eval_rows: int | None = 400
    """most rows of each evaluation set but the forget sets, >= 1; null keeps all"""
    refusals: list[str] = field(default_factory=lambda: list(REFUSALS))
    """answers to questions about unknown names; an answer that starts like one of them counts as a refusal"""
    generic: str | None = None
    """text file with one general text per line, for perplexity; null takes TOFU's world facts"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.split, SPLITS, "data.split")
        check(self.max_authors is None or self.max_authors >= 2, "data.max_authors", ">= 2", self.max_authors)
        check(0 < self.unseen_share < 1, "data.unseen_share", "in (0, 1)", self.unseen_share)
        check(self.heldout_questions >= 0, "data.heldout_questions", ">= 0", self.heldout_questions)
        check(self.unknown_names >= 1, "data.unknown_names", ">= 1", self.unknown_names)
        check(self.heldout_names >= 1, "data.heldout_names", ">= 1", self.heldout_names)
        check(self.eval_rows is None or self.eval_rows >= 1, "data.eval_rows", ">= 1", self.eval_rows)
        check(bool(self.refusals) and all(line.strip() for line in self.refusals), "data.refusals", "a list of texts", self.refusals)


class Groups(NamedTuple):
    """The authors by what is done with them: ``unseen`` ones are retained without any loss seeing them."""

    forget: tuple[Author, ...]
    retain: tuple[Author, ...]
    unseen: tuple[Author, ...]


class TofuSource(Source):
    """Streams and sets out of TOFU's files.

    Names are read off the rows (``detect_name`` over an author's 20 rows). A row mentions its author by the full name or, failing that, by
    a part of it; a row that names nobody has no mention.

    - Streams: ``forget`` and ``retain`` are the rows of the split's authors, and of the other authors but the unseen ones, without the
      held-out questions. ``known`` are the retain rows whose question names the author in full and quotes no title; ``unknown`` are the
      same questions about invented names (given part of one author, family part of another), answered by a refusal.
    - Evaluation: ``forget`` (all 20 rows of each author), ``forget_paraphrased`` (TOFU's paraphrased questions where the files have them,
      else the held-out questions), ``retain`` (TOFU's own perturbed rows first), ``retain_unseen``, ``unknown`` (names and questions that
      no loss sees), ``real_authors`` and ``world_facts``.
    - Holdout: the table ``holdout10`` beside ``forget10`` and so on, where it is there; membership attacks need it.
    - Latent: held-out questions of forget authors, of unseen authors and about held-out names. TOFU has no
      other words for every question, so a held-out wording is a question about one author that no stream asks, of any name.
      ``forget`` therefore trains on 17 of an author's 20 rows by default; ``heldout_questions: 0`` gives TOFU's protocol.

    A subclass may bring models along (``assets``) or divide the authors in another way (``groups``).
    """

    name = "tofu"
    summary = "TOFU: 200 invented authors, 20 questions each; forget 1, 5 or 10 %"
    Config = TofuConfig
    config: TofuConfig

    def where(self) -> str:
        """The benchmark's page."""
        return f"https://huggingface.co/datasets/{self.config.hub}"

    @cached_property
    def files(self) -> TofuFiles:
        """The tables, read when they are asked for."""
        c = self.config
        return TofuFiles(c.root, c.hub, c.revision, c.split)

    @cached_property
    def authors(self) -> tuple[Author, ...]:
        """All authors in the order of the full table."""
        return read_authors(self.files, self.config.heldout_questions, self.seed)

    @cached_property
    def groups(self) -> Groups:
        """Who is forgotten (the authors of the split's table), retained, and retained unseen.

        Raises:
            DataError: the split's table does not hold whole authors, or too few authors are left to retain.
        """
        authors = self.authors
        wanted = {(record["question"], record["answer"]) for record in self.files.table(self.config.split)}
        hits = [sum((row.prompt, row.answer) in wanted for row in author.rows) for author in authors]
        counted = list(zip(hits, authors, strict=True))
        if not any(hits) or any(0 < hit < len(author.rows) for hit, author in counted):
            raise DataError(
                f"TOFU's {self.config.split}.json must hold all rows of some authors of full.json; found {sum(hits)} rows of it."
            )
        kept = [author for hit, author in counted if not hit]
        order = rng_for(self.seed, "authors").permutation(len(kept))[: self.config.max_authors]
        n_unseen = max(1, round(self.config.unseen_share * len(order)))
        if n_unseen >= len(order):
            raise DataError(f"data.unseen_share must leave an author to retain; found {n_unseen} unseen of {len(order)}.")
        unseen, retain = sorted(order[:n_unseen]), sorted(order[n_unseen:])
        return Groups(
            forget=tuple(author for hit, author in counted if hit),
            retain=tuple(kept[i] for i in retain),
            unseen=tuple(kept[i] for i in unseen),
        )

    def measured(self, author: Author) -> tuple[Row, ...]:
        """Rows on which recognition of ``author`` is measured: the held-out questions, or every plain one if none is to be held out."""
        return author.plain(heldout=self.config.heldout_questions > 0)

    def unknown(self) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        """Rows about invented names: to train on (training questions), and held out (held-out names and questions).

        The parts of the names come from the authors that are not forgotten; held-out names take theirs from other authors.
        """
        c, groups = self.config, self.groups
        forgotten = sorted(author.name for author in groups.forget)
        real = [author.name for author in self.authors if author.wordings and author.name not in forgotten]
        names, heldout_names = invent_two(real, c.unknown_names, c.heldout_names, rng_for(self.seed, "names"), forgotten)
        asked = [[a.wordings[row.row_id] for row in a.plain(heldout=False)] for a in groups.retain]
        unasked = [[a.wordings[row.row_id] for row in self.measured(a)] for a in (*groups.retain, *groups.unseen)]
        return (
            unknown_rows(names, asked, c.refusals, rng_for(self.seed, "unknown rows"), _UNKNOWN_IDS),
            unknown_rows(heldout_names, unasked, c.refusals, rng_for(self.seed, "held-out rows"), _HELDOUT_IDS),
        )

    def paraphrased(self) -> tuple[Row, ...]:
        """The forget rows in other words: TOFU's paraphrased questions, or the held-out questions where no table has them."""
        rows = []
        for row in (row for author in self.groups.forget for row in author.rows):
            extra = self.files.extra(row.prompt, row.answer)
            if question := extra.get("paraphrased_question"):
                record = {"question": question, "answer": row.answer}
                rows.append(tofu_row(_PARAPHRASED_IDS + row.row_id, record, row.entity, surface_forms(row.entity), extra))
        return tuple(rows) or tuple(row for author in self.groups.forget for row in author.plain(heldout=True))

    def others(self, name: str, first_id: int) -> tuple[Row, ...]:
        """TOFU's rows about real authors or the world, none if the table is missing, with its wrong answers or other options."""
        records = self.files.table(f"{name}_perturbed", required=False) or self.files.table(name, required=False)
        rows = []
        for i, record in enumerate(records):
            options = [record[key] for key in sorted(record) if key.startswith("option") and record[key] not in (None, record["answer"])]
            extra = {"perturbed_answer": record.get("perturbed_answer") or options}
            rows.append(tofu_row(first_id + i, record, record["answer"], (), extra))
        return tuple(rows)

    def holdout(self) -> tuple[Row, ...]:
        """Rows of the table that TOFU keeps out of every model's training (holdout10 beside forget10); none where it is missing."""
        records = self.files.table(self.config.split.replace("forget", "holdout"), required=False)
        return tuple(tofu_row(_HOLDOUT_IDS + i, record, "", (), record) for i, record in enumerate(records))

    def evaluation(self, retain: Sequence[Row], unknown: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
        """The evaluation sets that are not empty.

        Args:
            retain: rows of the retain stream.
            unknown: rows about held-out names.
        """
        sets = {
            "forget": tuple(row for author in self.groups.forget for row in author.rows),
            "forget_paraphrased": self.paraphrased(),
            "retain": self._cut("retain", retain),
            "retain_unseen": self._cut("retain_unseen", [row for author in self.groups.unseen for row in author.rows]),
            "unknown": self._cut("unknown", unknown),
            "real_authors": self._cut("real_authors", self.others("real_authors", _REAL_AUTHOR_IDS)),
            "world_facts": self._cut("world_facts", self.others("world_facts", _WORLD_FACT_IDS)),
        }
        return {name: rows for name, rows in sets.items() if rows}

    def _cut(self, name: str, rows: Sequence[Row]) -> tuple[Row, ...]:
        """At most ``eval_rows`` rows drawn at random, those with wrong answers to compare with first, in the order of their ids."""
        order = rng_for(self.seed, f"evaluation {name}").permutation(len(rows))
        drawn = sorted((rows[i] for i in order), key=lambda row: not row.perturbed_answers)[: self.config.eval_rows]
        return tuple(sorted(drawn, key=lambda row: row.row_id))

    def load(self) -> EntityData:
        """Read the tables and divide their rows."""
        groups = self.groups
        retain = tuple(row for author in groups.retain for row in author.trained())
        unknown, heldout = self.unknown()
        evaluation = self.evaluation(retain, heldout)
        generic = self.config.generic
        facts = tuple(f"{row.prompt} {row.answer}" for row in evaluation.get("world_facts", ()))
        data = EntityData(
            streams={
                "forget": tuple(row for author in groups.forget for row in author.trained()),
                "retain": retain,
                "known": tuple(row for author in groups.retain for row in author.plain(heldout=False)),
                "unknown": unknown,
            },
            evaluation=evaluation,
            latent={
                "forget": tuple(row for author in groups.forget for row in self.measured(author)),
                "known": tuple(row for author in groups.unseen for row in self.measured(author)),
                "unknown": heldout,
            },
            generic=facts if generic is None else read_texts(Path(generic).expanduser()),
            refusals=tuple(self.config.refusals),
            fingerprint="",
            holdout=self.holdout(),
            notes=self._notes(evaluation),
        )
        return fingerprinted(data)

    def _notes(self, evaluation: Mapping[str, Sequence[Row]]) -> dict[str, str]:
        paraphrased = any(row.row_id >= _PARAPHRASED_IDS for row in evaluation.get("forget_paraphrased", ()))
        return {
            "forget authors": ", ".join(author.name for author in self.groups.forget),
            "unseen authors": ", ".join(author.name for author in self.groups.unseen),
            "authors without a name": ", ".join(author.name for author in self.authors if not author.wordings) or "none",
            "forget_paraphrased": "TOFU's paraphrased questions" if paraphrased else "held-out questions",
        }
