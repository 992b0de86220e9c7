"""Files that are never seen half written: whole-file writes swap a finished copy in, appended lines end in a newline."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of ``path`` to write to; afterwards it is synced to disk and put in place of ``path``.

    Whatever goes wrong meanwhile, ``path`` stays as it was and the temporary file is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
        sync(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time builds ``path``; the others wait, and find it there when they come in."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write ``content`` to a temporary name in the same folder, then put it in place of ``path``; return ``path``."""
    with aside(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def strict(value: Any) -> Any:
    """``value`` in the words of strict JSON: numpy and torch values become numbers and lists, a number that is not finite its name.

    >>> strict({"a": float("inf"), "b": (1, 2.5)})
    {'a': 'inf', 'b': [1, 2.5]}
    """
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, bool | str) or value is None:
        return value
    if hasattr(value, "tolist"):
        return strict(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, int) else str(value)


def dump_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON text of ``value`` (see ``strict``); one line when ``indent`` is None."""
    return json.dumps(strict(value), indent=indent, ensure_ascii=False, allow_nan=False)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append ``rows`` as JSON lines; a last line that a killed process left torn is closed first, so that it spoils nothing."""
    text = "".join(dump_json(row, indent=None) + "\n" for row in rows)
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode("utf-8"))


def cut_lines(path: Path, size: int) -> None:
    """Drop what a JSON-lines file holds beyond ``size`` bytes; a file that is missing or shorter stays as it is."""
    if path.is_file() and path.stat().st_size > size:
        os.truncate(path, size)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file, torn lines left out; an empty list where there is no file."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is missing, damaged or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
