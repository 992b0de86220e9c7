"""JSON-lines files: read whole, and refused with every bad line named at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unlearn.errors import DataError

_LISTED = 10


def _parse(line: str) -> tuple[dict[str, Any], str]:
    """The record of a line, and what is wrong with it."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return {}, f"must be a JSON object; found {line.strip()[:60]!r} ({error.msg})"
    if not isinstance(record, dict):
        return {}, f"must be a JSON object; found {line.strip()[:60]!r}"
    return record, ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} must be a readable UTF-8 text file; found {error}.") from error
    except UnicodeDecodeError as error:
        place = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{place} must be a readable UTF-8 text file; found the byte 0x{data[error.start]:02x}.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def read_records(path: Path, problem: Callable[[Mapping[str, Any]], str]) -> list[dict[str, Any]]:
    """Records of a JSON-lines file, in order; empty lines are passed over.

    Args:
        path: the file.
        problem: what is wrong with a record, as "<field> must be <expected>; found <found>"; empty if nothing is.

    Raises:
        DataError: the file cannot be read, or lines are wrong: ``file:line`` and the problem for the first ten of them.
    """
    records: list[dict[str, Any]] = []
    wrong: list[str] = []
    for number, line in _lines(path):
        record, fault = _parse(line)
        fault = fault or problem(record)
        if fault:
            wrong.append(f"{path}:{number} {fault}" + ("" if fault.endswith("?") else "."))
        records.append(record)
    if wrong:
        more = [f"{len(wrong) - _LISTED} more lines of {path} are wrong."] if len(wrong) > _LISTED else []
        raise DataError("\n".join([*wrong[:_LISTED], *more]))
    return records


def text_problem(record: Mapping[str, Any], *fields: str) -> str:
    """What is wrong with ``fields`` of ``record``, each of which must be a text that is not blank.

    >>> text_problem({"question": "Who?", "answer": 3}, "question", "answer")
    'answer must be a text; found 3'
    """
    for field in fields:
        value = record.get(field)
        if not isinstance(value, str) or not value.strip():
            return f"{field} must be a text; found {'nothing' if field not in record else repr(value)}"
    return ""


def read_texts(path: Path) -> tuple[str, ...]:
    """Lines of a text file that are not blank.

    Raises:
        DataError: the file cannot be read.
    """
    return tuple(line.strip() for _, line in _lines(path))
