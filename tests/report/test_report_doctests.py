import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["names", "style", "fate", "headline"])
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"unlearn.report.{name}"))
    assert result.attempted >= 1
    assert result.failed == 0
