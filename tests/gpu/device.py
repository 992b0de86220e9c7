"""Where these tests compute: on the first CUDA device.

With REHEARSE=1 they run on the CPU against itself, which finds what is wrong with the tests before a machine with a GPU is at hand. FIGURES
names a file to which the differences that were found are written, one line of JSON each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

REHEARSAL = os.environ.get("REHEARSE") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
ACCELERATOR = "cpu" if REHEARSAL else "gpu"
MISSING = "make test-gpu must run on a machine with a CUDA device; torch finds none."


def missing() -> str:
    """What is wrong with this machine; empty where nothing is."""
    return "" if REHEARSAL or torch.cuda.is_available() else MISSING


def note(what: str, **figures: float | str) -> None:
    """Write down what was found, where FIGURES says."""
    if place := os.environ.get("FIGURES"):
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **figures}) + "\n")
