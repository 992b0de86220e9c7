from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "functional.aliases",
    "functional.answer_mix",
    "functional.choice",
    "functional.distance",
    "functional.divergence",
    "functional.membership",
    "functional.memorisation",
    "functional.mmd",
    "functional.ridge",
    "functional.rounding",
    "functional.scores",
    "functional.statistics",
    "functional.text",
    "functional.tokens",
    "functional.utility",
    "metrics.answers",
    "metrics.choice",
    "metrics.fluency",
    "metrics.likelihood",
    "metrics.lists",
    "metrics.membership",
    "metrics.mix",
    "metrics.quality",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"unlearn.{name}"))
    assert result.attempted >= 1
    assert result.failed == 0
