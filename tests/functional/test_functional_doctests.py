from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "functional.distance",
    "functional.divergence",
    "functional.memorisation",
    "functional.mmd",
    "functional.statistics",
    "functional.text",
    "functional.tokens",
    "metrics.answers",
    "metrics.likelihood",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"unlearn.{name}"))
    assert result.attempted >= 2
    assert result.failed == 0
