"""TOFU's files and the authors in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unlearn.data.anchors import Wording, rng_for, wording
from unlearn.data.entities import detect_name, find_mention, surface_forms
from unlearn.data.records import read_records, text_problem
from unlearn.errors import DataError
from unlearn.types import Row

ROWS_PER_AUTHOR = 20
SPLITS = ("forget01", "forget05", "forget10")

_PERTURBED = ("forget10_perturbed", "forget05_perturbed", "forget01_perturbed", "retain_perturbed")


class TofuFiles:
    """TOFU's tables, from a folder of JSON-lines files or from the hub."""

    def __init__(self, root: str | None, hub: str, revision: str | None, split: str) -> None:
        """Keep where the tables are; nothing is read yet."""
        self.root = None if root is None else Path(root).expanduser()
        self.hub, self.revision, self.split = hub, revision, split

    def table(self, name: str, *, required: bool = True) -> list[dict[str, Any]]:
        """Rows of one table; an empty list for a missing one that is not ``required``.

        Raises:
            DataError: a required table is missing, or its lines are no {question, answer}.
        """
        if self.root is None:
            return self._download(name, required)
        path = self.root / f"{name}.json"
        if path.is_file():
            return read_records(path, lambda record: text_problem(record, "question", "answer"))
        if required:
            raise DataError(f"data.root must hold TOFU's {name}.json (from https://huggingface.co/datasets/{self.hub}); found no {path}.")
        return []

    def _download(self, name: str, required: bool) -> list[dict[str, Any]]:
        import datasets

        try:
            if not required and name not in datasets.get_dataset_config_names(self.hub, revision=self.revision):
                return []
            return list(datasets.load_dataset(self.hub, name, split="train", revision=self.revision))
        except Exception as error:
            found = (str(error) or type(error).__name__).splitlines()[0]
            hint = f"data.hub must give TOFU's {name}, or data.root a folder with its files"
            raise DataError(f"{hint}; {self.hub!r} gave: {found}") from error

    @cached_property
    def extras(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the perturbed tables add to a row (paraphrases, wrong answers), by (question, answer); the split's own table comes first."""
        merged: dict[tuple[str, str], dict[str, Any]] = {}
        for name in dict.fromkeys((f"{self.split}_perturbed", *_PERTURBED)):
            for record in self.table(name, required=False):
                key = (record["question"], record["answer"])
                merged[key] = {**record, **merged.get(key, {})}
        return merged

    def extra(self, question: str, answer: str) -> dict[str, Any]:
        """The entry of ``extras`` for a row, or an empty one."""
        return self.extras.get((question, answer), {})


class Author(NamedTuple):
    """One author: ``rows`` in the order of the full table, of which ``heldout`` (ids) are kept for the latent measurement.

    ``wordings`` are the questions that could be asked about anyone, by row id. An author whom no row names has neither.
    """

    name: str
    rows: tuple[Row, ...]
    wordings: Mapping[int, Wording]
    heldout: frozenset[int]

    def trained(self) -> tuple[Row, ...]:
        """Rows that a loss may see."""
        return tuple(row for row in self.rows if row.row_id not in self.heldout)

    def plain(self, *, heldout: bool) -> tuple[Row, ...]:
        """Rows whose question names the author in full and quotes no title: the held-out ones or the others."""
        return tuple(row for row in self.rows if row.row_id in self.wordings and (row.row_id in self.heldout) == heldout)


def tofu_row(
    row_id: int, record: Mapping[str, Any], entity: str, forms: Sequence[str], extra: Mapping[str, Any], template: str = ""
) -> Row:
    """A row out of a {question, answer} record; it mentions ``entity`` if one of ``forms`` occurs in it."""
    named = find_mention(record["question"], record["answer"], forms) is not None
    return Row(
        row_id=row_id,
        entity=entity,
        prompt=record["question"],
        answer=record["answer"],
        mentions=tuple(forms) if named else (),
        template=template,
        paraphrased_answer=extra.get("paraphrased_answer") or "",
        perturbed_answers=tuple(extra.get("perturbed_answer") or ()),
    )


def _author(number: int, records: Sequence[dict[str, Any]], files: TofuFiles) -> Author:
    detected = detect_name([f"{record['question']}\n{record['answer']}" for record in records])
    name = detected or f"author {number}"
    forms = surface_forms(detected) if detected else ()
    rows = tuple(
        tofu_row(number * ROWS_PER_AUTHOR + i, record, name, forms, files.extra(record["question"], record["answer"]), f"{number}/{i}")
        for i, record in enumerate(records)
    )
    return Author(name, rows, {row.row_id: found for row in rows if detected and (found := wording(row, name))}, frozenset())


def _hold_out(author: Author, shared: Counter[str], count: int, rng: np.random.Generator) -> Author:
    own = [row_id for row_id, found in sorted(author.wordings.items()) if shared[found.text] == 1]
    drawn = rng.permutation(own)[: min(count, len(author.wordings) // 2)]
    return author._replace(heldout=frozenset(int(row_id) for row_id in drawn))


def read_authors(files: TofuFiles, heldout_questions: int, seed: int) -> tuple[Author, ...]:
    """All authors in the order of the full table; an author's row ids are the places of the rows in it.

    Up to ``heldout_questions`` of an author's wordings, and at most half of them, are held out: such that ask about no other author.

    Raises:
        DataError: the full table is missing or does not hold 20 rows for each author.
    """
    records = files.table("full")
    if not records or len(records) % ROWS_PER_AUTHOR:
        raise DataError(f"TOFU's full.json must hold {ROWS_PER_AUTHOR} rows for each author; found {len(records)} rows.")
    blocks = [records[first : first + ROWS_PER_AUTHOR] for first in range(0, len(records), ROWS_PER_AUTHOR)]
    authors = [_author(number, block, files) for number, block in enumerate(blocks)]
    shared = Counter(found.text for author in authors for found in author.wordings.values())
    return tuple(_hold_out(author, shared, heldout_questions, rng_for(seed, f"questions {i}")) for i, author in enumerate(authors))
