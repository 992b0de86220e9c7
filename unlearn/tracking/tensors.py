"""Safetensors files that are never seen half written and carry a checksum of what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.tracking.files import aside

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "sha256"
"""Key of the file's metadata that holds the checksum."""


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of tensors on the CPU, whatever their order."""
    import torch

    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write ``tensors`` (on the CPU) through a temporary name, with their checksum in the file's metadata; return ``path``.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with aside(path) as temporary:
        try:
            save_file(kept, temporary, metadata={**(metadata or {}), CHECKSUM: checksum(kept)})
        except SafetensorError as error:  # its word for whatever the disk has to say
            raise OSError(str(error)) from error
    return path


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What ``save_tensors`` wrote; a file without a checksum is taken as it is.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if CHECKSUM in metadata and (found := checksum(tensors)) != metadata[CHECKSUM]:
        raise ValueError(f"checksum {found[:12]}, not {metadata[CHECKSUM][:12]}")
    return tensors
