"""Which model is this? A name for the contents of a model folder, for caches and manifests."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".npz", ".pt")


def folder_identity(path: Path) -> str:
    """Hash of a model folder: name and contents of every JSON and weight file; 16 hex digits.

    Weights are read in full (about a second for each GB on one core): a model that was changed in one middle block is another model, and
    what is cached for the one must not be taken for the other.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file()):
        if file.suffix == ".json" or file.suffix in WEIGHTS:
            with file.open("rb") as stream:
                digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def identity(name: str | Path, revision: str | None = None) -> str:
    """Identity of a local folder by its contents, of a hub id by its name and the resolved revision."""
    path = Path(name)
    return folder_identity(path) if path.is_dir() else f"{name}@{revision or 'main'}"
