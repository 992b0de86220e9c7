"""Folders that are built once: written aside, renamed when complete, checked against a manifest when opened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from unlearn.errors import CacheError

MANIFEST = "manifest.json"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(files)}


def verify(folder: Path) -> dict[str, Any]:
    """Read the manifest of an entry and check every file against it.

    Raises:
        CacheError: the manifest or a file is missing or differs; the message names the folder to delete.
    """
    advice = f"delete {folder} and run again to rebuild it."
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: Mapping[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"Cache entry {folder} must hold a readable {MANIFEST}; found {type(error).__name__}; {advice}") from error
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise CacheError(f"Cache entry {folder} must hold {name}; found no such file; {advice}")
        if (found := _digest(path)) != digest:
            raise CacheError(f"Cache entry {folder} must hold {name} with sha256 {digest[:12]}; found {found[:12]}; {advice}")
    return manifest


def obtain(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest of ``folder``, building the entry first when there is none.

    Processes that want the same entry at once wait for the one that builds it. ``build`` gets an empty folder beside the entry, which is
    renamed when it is complete, and returns facts to keep in the manifest under ``facts``.

    Raises:
        CacheError: the entry exists and is damaged.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            return verify(folder)
        prefix = f".{folder.name}-"
        for stale in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            facts = dict(build(aside))
            manifest = {"facts": facts, "files": _contents(aside)}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            aside.chmod(0o755)
            os.replace(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return manifest
