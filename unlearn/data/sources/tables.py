"""Tables of published benchmarks: from a folder that holds the benchmark's own files, or from the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.data.records import read_records, text_problem
from unlearn.errors import DataError

Record = dict[str, Any]
Problem = Callable[[Mapping[str, Any]], str]
"""What is wrong with a record, or an empty string."""

_LISTED = 5


def fields(*names: str) -> Problem:
    """The check that each of ``names`` is a text that is not blank.

    >>> fields("question")({"question": ""})
    "question must be a text; found ''"
    """
    return lambda record: text_problem(record, *names)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a readable UTF-8 text file; found {error}.") from error


def read_json(path: Path) -> Any:
    """A JSON document; a file of JSON lines gives the list of them.

    Raises:
        DataError: the file cannot be read, or is neither.
    """
    text = _text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if path.suffix == ".jsonl" or text.lstrip().startswith("{"):
            return read_records(path, lambda record: "")
        raise DataError(f"{path} must be a JSON document; found {text[:60]!r} ({error.msg}).") from error


def _parquet(path: Path) -> list[Record]:
    from pyarrow import ArrowInvalid, parquet

    try:
        return list(parquet.read_table(path).to_pylist())
    except (OSError, ArrowInvalid) as error:
        raise DataError(f"{path} must be a readable parquet file; found {error}.") from error


def read_rows(path: Path) -> list[Any]:
    """Rows of a file: JSON (a list), JSON lines, parquet, or CSV without a header (lists of cells).

    Raises:
        DataError: the file cannot be read, or is no list.
    """
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".csv":
        return list(csv.reader(_text(path).splitlines(keepends=True)))
    found = read_json(path)
    if not isinstance(found, list):
        raise DataError(f"{path} must be a list of rows; found {type(found).__name__}.")
    return found


def checked(rows: Sequence[Any], problem: Problem, where: str) -> list[Record]:
    """``rows`` if each is a record that ``problem`` has nothing against.

    Raises:
        DataError: the first five rows that are wrong, each by its place.
    """
    wrong = []
    for place, row in enumerate(rows):
        fault = problem(row) if isinstance(row, dict) else f"must be a record; found {row!r:.60}"
        if fault:
            wrong.append(f"{where}, row {place}: {fault}.")
    if wrong:
        more = [f"{len(wrong) - _LISTED} more rows of {where} are wrong."] if len(wrong) > _LISTED else []
        raise DataError("\n".join([*wrong[:_LISTED], *more]))
    return list(rows)


class Tables:
    """The tables of one benchmark."""

    def __init__(self, title: str, root: str | None, hub: str, revision: str | None, origin: str = "") -> None:
        """Keep where the tables are; nothing is read yet.

        Args:
            title: name of the benchmark, for messages.
            root: folder with its files; None asks the hub.
            hub: id of the data set on the hub.
            revision: branch, tag or commit there.
            origin: where the files come from if not from the hub.
        """
        self.title, self.hub, self.revision = title, hub, revision
        self.root = None if root is None else Path(root).expanduser()
        self.origin = origin or f"https://huggingface.co/datasets/{hub}"

    def find(self, *patterns: str) -> list[Path]:
        """Files below the root that the first pattern with any fits, sorted; empty without a root."""
        if self.root is None:
            return []
        return next((found for pattern in patterns if (found := sorted(p for p in self.root.glob(pattern) if p.is_file()))), [])

    def missing(self, name: str) -> DataError:
        """The error that says which file is missing, and where it comes from."""
        return DataError(f"data.root must hold {self.title}'s {name} (from {self.origin}); found no {self.root}/{name}.")

    def read(
        self, patterns: Sequence[str], config: str | None, split: str, problem: Problem, *, required: bool = True, hub: str | None = None
    ) -> list[Record]:
        """Rows of one table.

        Args:
            patterns: files below the root, the usual name first; the files of the first that fits any are read one after the other.
            config: configuration of the data set on the hub; None where it has but one.
            split: split of it.
            problem: what is wrong with a record.
            required: whether a table that is not there is an error; otherwise it is empty.
            hub: data set on the hub, if not the benchmark's main one.

        Raises:
            DataError: a required table is missing, or rows are wrong.
        """
        if self.root is None:
            name = "/".join(part for part in (config, split) if part)
            return checked(self._download(hub or self.hub, config, split, required), problem, f"{hub or self.hub} {name}")
        paths = self.find(*patterns)
        if not paths and required:
            raise self.missing(patterns[0])
        return [record for path in paths for record in checked(read_rows(path), problem, str(path))]

    def _download(self, hub: str, config: str | None, split: str, required: bool) -> list[Record]:
        import datasets

        revision = self.revision if hub == self.hub else None
        try:
            if not required and not self._offered(hub, config, split, revision):
                return []
            return list(datasets.load_dataset(hub, config, split=split, revision=revision))
        except Exception as error:  # hub, network and file errors have no common base
            found = (str(error) or type(error).__name__).splitlines()[0]
            name = "/".join(part for part in (config, split) if part)
            raise DataError(
                f"data.hub must give {self.title}'s {name}, or data.root a folder with its files; {hub!r} gave: {found}"
            ) from error

    @staticmethod
    def _offered(hub: str, config: str | None, split: str, revision: str | None) -> bool:
        import datasets

        if config is not None and config not in datasets.get_dataset_config_names(hub, revision=revision):
            return False
        return split in datasets.get_dataset_split_names(hub, config, revision=revision)
