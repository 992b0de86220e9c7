"""MUSE (Shi et al., 2407.06460): news articles or books to forget, with questions, verbatim passages and membership texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unlearn.config.checks import check, one_of
from unlearn.data.records import text_problem
from unlearn.data.sources.benchmark import PART, Benchmark, BenchmarkConfig, Parts
from unlearn.data.sources.pieces import continuation, text_rows, with_stem_terms
from unlearn.data.sources.tables import Problem, Record, Tables, fields
from unlearn.types import EntityData, Row

CORPORA: tuple[str, ...] = ("news", "books")
FORGET: tuple[str, ...] = (
    "raw/forget", "train/forget", *(f"{kind}/forget_{i}" for kind in ("scal", "sust") for i in range(1, 5)),
)  # fmt: skip
"""Tables that may be forgotten: the corpus, and those of MUSE's tests of scale and of requests one after the other."""

_HUBS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}


@dataclass(frozen=True, kw_only=True)
class MuseConfig(BenchmarkConfig):
    """MUSE."""

    corpus: str = "news"
    """which texts: news (BBC articles) or books (Harry Potter, against its fan encyclopaedia)"""
    forget: str = "raw/forget"
    """table of the texts to forget: raw/forget, train/forget, scal/forget_1 to 4 or sust/forget_1 to 4"""
    text_words: int = 150
    """words of a piece of a text in the forget and retain streams, > stem_words"""
    stem_words: int = 30
    """words at the beginning of a piece that are given and not learnt, >= 1"""
    prompt_words: int = 200
    """words of a verbatim passage that are given where its table does not say, >= 1; the rest is to be continued"""
    max_length: int = 3072
    """longest row in tokens; the membership texts have up to 2048 tokens of a Llama-2 tokenizer"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.corpus, CORPORA, "data.corpus")
        one_of(self.forget, FORGET, "data.forget")
        check(self.stem_words >= 1, "data.stem_words", ">= 1", self.stem_words)
        check(self.text_words > self.stem_words, "data.text_words", "> data.stem_words", self.text_words)
        check(self.prompt_words >= 1, "data.prompt_words", ">= 1", self.prompt_words)


def _passage_problem(record: Mapping[str, Any]) -> str:
    return text_problem(record, *(("prompt", "gt") if "prompt" in record else ("text",)))


class MuseSource(Benchmark):
    """Pieces of the texts to forget, continued from a stem; measured as MUSE does.

    - ``forget``: the questions about the texts to forget (``knowmem``), ``retain``: those about the others.
    - ``verbmem``: passages of the texts to forget, the beginning given.
    - ``privleak``: membership texts of the forget part, against ``holdout``, texts that no model saw. All but the first word is scored.
    - ``privleak_retain``: membership texts of the retain part.

    MUSE has no entities: a question is about its most telling term, a piece about the text it comes from, and it names the most telling
    term of its stem; for the forget side that is a term which nothing to be kept names. Known anchors are half of the retain questions
    (the other half is ``retain_unseen``), unknown ones the same questions about words made of the parts of real terms.
    """

    name = "muse"
    summary = "MUSE: news or books to forget; questions, verbatim passages, membership texts"
    title = "MUSE"
    Config = MuseConfig
    config: MuseConfig

    @cached_property
    def tables(self) -> Tables:
        """The corpus's tables."""
        c = self.config
        return Tables(self.title, c.root, c.hub or _HUBS[c.corpus], c.revision)

    def table(self, name: str, problem: Problem, *, required: bool = True) -> list[Record]:
        """Rows of the table ``<subset>/<split>``; its older name is tried too (retain2 for retain).

        Raises:
            DataError: it is missing, or its rows are wrong.
        """
        config, split = name.split("/")
        places = ("", f"{self.config.corpus}/", f"data/{self.config.corpus}/")
        patterns = [f"{place}{name}{end}" for place in places for end in (".json", ".jsonl", "-*.parquet")]
        return self.tables.read(patterns, config, split, problem, required=required)

    def texts(self, name: str) -> list[str]:
        """Texts of a table."""
        return [str(record["text"]) for record in self.table(name, fields("text"))]

    def pieces(self, name: str, first_id: int, label: str) -> list[Row]:
        """Pieces of a table's texts, at most ``train_rows`` of them, drawn at random."""
        rows = text_rows(self.texts(name), first_id, label, self.config.text_words, self.config.stem_words)
        return list(self.cut(rows, self.config.train_rows, label))

    def questions(self, part: str, first_id: int) -> list[Row]:
        """Questions about the texts of a part, without mentions."""
        records = self.table(f"knowmem/{part}_qa", fields("question", "answer"))
        return [
            Row(row_id=first_id + i, entity=f"{part} question {i}", prompt=record["question"], answer=record["answer"])
            for i, record in enumerate(records)
        ]

    def passages(self) -> list[Row]:
        """Verbatim passages of the texts to forget."""
        rows = []
        for i, record in enumerate(self.table("verbmem/forget", _passage_problem)):
            if "prompt" in record:
                row = Row(
                    row_id=4 * PART + i, entity=f"passage {i}", prompt=record["prompt"], answer=record["gt"].lstrip(), kind="statement"
                )
                rows.append(row)
            elif made := continuation(4 * PART + i, f"passage {i}", record["text"], self.config.prompt_words):
                rows.append(made)
        return rows

    def members(self, part: str, first_id: int) -> list[Row]:
        """Membership texts; the first word is the prompt."""
        made = (continuation(first_id + i, f"{part} text {i}", text, 1) for i, text in enumerate(self.texts(f"privleak/{part}")))
        return [row for row in made if row is not None]

    def load(self) -> EntityData:
        """Read the tables and divide their rows."""
        c = self.config
        retain = with_stem_terms(self.pieces("raw/retain1", PART, "retain text"), own=False)
        known = with_stem_terms(self.questions("retain", 2 * PART))
        others = [row.prompt for row in (*retain, *known)]
        about = with_stem_terms(self.questions("forget", 3 * PART), others)
        forget = with_stem_terms(self.pieces(c.forget, 0, "forget text"), others, own=False)
        halves = self.hold_out(known, 0.5, "the retain questions")
        evaluation = {
            "forget": about,
            "retain": known,
            "verbmem": self.passages(),
            "privleak": self.members("forget", 5 * PART),
            "privleak_retain": self.members("retain", 6 * PART),
        }
        parts = Parts(
            forget=forget,
            retain=retain,
            anchors=[row for row in known if row.entity not in halves],
            unseen=[row for row in known if row.entity in halves],
            probes=about,
            evaluation=evaluation,
            holdout=self.members("holdout", 7 * PART),
            members="privleak",
            notes={"corpus": c.corpus, "texts to forget": c.forget, "known": "half of the retain questions; the others are retain_unseen"},
        )
        return self.build(parts)
