"""Tests for a machine with a GPU (`make test-gpu`); no other command collects them."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import missing


def pytest_sessionstart() -> None:
    if found := missing():
        pytest.exit(found, returncode=1)
    torch.set_float32_matmul_precision("highest")  # no TF32: the CPU has none
