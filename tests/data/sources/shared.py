"""Real rows for tests where UNLEARN_SHARED says they lie, else made-up ones of the same schema."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def shared(folder: str, write: Callable[[Path], Path], fallback: Path) -> tuple[Path, bool]:
    """(folder with the files, whether they are the real ones)."""
    place = os.environ.get("UNLEARN_SHARED")
    return (Path(place) / "data" / folder, True) if place else (write(fallback), False)
