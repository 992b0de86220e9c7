"""Modules of the repository that lie outside the package: scripts of experiments and of docker/."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def module_of(path: str) -> Any:
    """The module in the file ``path``, relative to the repository, under its file's name.

    Raises:
        FileNotFoundError: there is no such file.
    """
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
