"""Checkpoints that survive a kill, a full disk and a damaged file.

A checkpoint is written to a temporary name, synced, and renamed; the one before it is kept beside it as ``<name>.previous.ckpt``. Its
SHA-256 stands in the comment of the zip archive that ``torch.save`` writes, so that file and checksum cannot part, and the file stays one
that ``torch.load`` reads. A checkpoint that never had one (Lightning's own, or of an earlier version) is judged by the CRC-32 that the
archive keeps of each record: whole ones are gone on with, others are refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from unlearn.errors import RunError
from unlearn.tracking.files import aside, sync

LAST = "last.ckpt"
"""Name of the checkpoint that ``unlearn run --resume`` goes on from."""

MARK = b"unlearn sha256 "
LENGTH = len(MARK) + 64
"""Bytes of the comment: the mark and the checksum in hexadecimal."""
PLAIN_END = b"PK\5\6" + bytes(18)
"""End of an archive without a comment: a mark, numbers, and the comment's length, 0."""
CHUNK = 1 << 22
"""Bytes read at once."""


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


class _Hashed:
    """A file that is written from start to end, and what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def write(checkpoint: Any, path: Path) -> None:
    """Save ``checkpoint`` to ``path`` with its checksum.

    Raises:
        OSError: the disk does not take it.
    """
    with path.open("wb+") as file:
        hashed = _Hashed(file)
        try:
            torch.save(checkpoint, cast("IO[bytes]", hashed))
        except RuntimeError:  # torch's word for a write that failed
            if hashed.error is not None:
                raise hashed.error from None
            raise
        comment = MARK + hashed.digest.hexdigest().encode()
        file.seek(-2, os.SEEK_END)  # the length of the comment ends the archive
        file.write(len(comment).to_bytes(2, "little") + comment)


def damage(path: Path) -> str:
    """What is wrong with the checkpoint at ``path``; empty where nothing is."""
    try:
        with path.open("rb") as file:
            left = file.seek(0, os.SEEK_END) - LENGTH - 2
            if left < 0:
                return "it is too short"
            file.seek(left + 2)
            comment = file.read()
            if not re.fullmatch(re.escape(MARK) + rb"[0-9a-f]{64}", comment):
                return "" if _whole_archive(path) else "it has no checksum at its end"
            file.seek(0)
            digest = hashlib.sha256()
            while left > 0 and (piece := file.read(min(CHUNK, left))):
                digest.update(piece)
                left -= len(piece)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    digest.update(b"\0\0")
    found, expected = digest.hexdigest(), comment[len(MARK) :].decode()
    return "" if found == expected else f"its checksum is {found[:12]}, not {expected[:12]}"


def _whole_archive(path: Path) -> bool:
    """Whether a checkpoint without our checksum is one that never had any, and is whole: the archive ends as ``torch.save`` ends it, and
    the CRC-32 of every record in it fits. What lost its checksum by damage has lost that end too."""
    with path.open("rb") as file:
        file.seek(-len(PLAIN_END), os.SEEK_END)
        end = file.read()
    if not (end.startswith(PLAIN_END[:4]) and end.endswith(PLAIN_END[-2:])):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist()) and archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError):
        return False


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in ``folder``, None where there is none, and a sentence for each damaged one that was passed over."""
    said: list[str] = []
    for path in (folder / LAST, previous(folder / LAST)):
        if not path.exists():
            continue
        wrong = "" if path.is_dir() else damage(path)
        if not wrong:
            return path, said
        said.append(f"{path} must be as it was written; found it damaged: {wrong}.")
    return None, said


def read(path: Path) -> dict[str, Any]:
    """The checkpoint at ``path``, its tensors left on disk until they are used.

    Raises:
        RunError: it holds something else than tensors and plain values.
    """
    return _load(path, map_location="cpu", mmap=True)


def _load(path: Path, **options: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True, **options)
    except Exception as error:  # torch.load has no error of its own
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise RunError(f"{path} must hold tensors and plain values only; found: {reason}") from error
    return found


class DurableCheckpointIO(CheckpointIO):
    """Lightning's way to the disk: whole files only, the last two of them, each with its checksum."""

    def __init__(self) -> None:
        super().__init__()
        self._sound: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; a whole one that has its name already is kept as ``previous``.

        Raises:
            RunError: the disk does not take it; the one that was there is still there.
        """
        if storage_options is not None:
            raise TypeError("storage_options must be left out: checkpoints are local files.")
        place = Path(path)
        try:
            with aside(place) as temporary:
                write(checkpoint, temporary)
                self._keep(place)
        except OSError as error:
            kept = f"the one before it, {place.name}, is whole" if place.exists() else "there is none before it"
            raise RunError(f"{place} must be a checkpoint that can be written; found: {error.strerror or error} ({kept}).") from error
        self._sound.add(place)

    def _keep(self, path: Path) -> None:
        """Give the checkpoint at ``path`` its second name, unless it is damaged and would take the place of a whole one."""
        if not path.is_file() or (path not in self._sound and damage(path)):
            return
        kept = previous(path)
        spare = path.with_name(f".{kept.name}.tmp")
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
        except OSError:  # a file system without second names
            os.replace(path, kept)
            return
        try:
            os.replace(spare, kept)
        finally:
            spare.unlink(missing_ok=True)
        sync(path.parent)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain values only, never code.

        Raises:
            RunError: it is missing or damaged, or holds something else than tensors and plain values.
        """
        place = Path(path)
        wrong = damage(place)
        if wrong:
            raise RunError(f"{place} must be as it was written; found it damaged: {wrong}.")
        self._sound.add(place)
        return _load(place, map_location=map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        with suppress(FileNotFoundError):
            Path(path).unlink()
