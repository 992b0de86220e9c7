"""Which model is this? A name for the contents of a model folder, for caches and manifests."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".npz", ".pt")
EDGE = 1 << 20


def folder_identity(path: Path) -> str:
    """Hash of a model folder: every JSON file in full, every weight file by name, size, first and last MiB; 16 hex digits.

    Cheap for a model of any size, and different whenever a training run or a conversion wrote other weights.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file()):
        if file.suffix == ".json":
            digest.update(file.name.encode() + file.read_bytes())
        elif file.suffix in WEIGHTS:
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(EDGE))
                stream.seek(max(0, size - EDGE))
                digest.update(stream.read(EDGE))
    return digest.hexdigest()[:16]


def identity(name: str | Path, revision: str | None = None) -> str:
    """Identity of a local folder by its contents, of a hub id by its name and the resolved revision."""
    path = Path(name)
    return folder_identity(path) if path.is_dir() else f"{name}@{revision or 'main'}"
