from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from typing import Literal, Optional, Union

import pytest

from unlearn.config.document import FieldDoc, describe, docstrings, fields_of, show, type_name
from unlearn.config.schema import RunConfig


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner."""

    a: int = 1
    """first"""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outer."""

    name: str
    """must
    be given"""
    maybe: Inner | None = None
    bare: list[float] = field(default_factory=lambda: [1.0])
    inner: Inner = field(default_factory=lambda: Inner(a=5))
    """section"""


@dataclass(frozen=True, kw_only=True)
class Wider(Outer):
    """Wider."""

    name: str = "w"
    """has a default"""
    more: bool = True
    """new"""


def test_strings_under_fields():
    assert docstrings(Outer) == {"name": "must be given", "inner": "section"}
    assert docstrings(make_dataclass("Made", ["x"])) == {}


def test_fields():
    name, maybe, bare, inner = fields_of(Outer)
    assert (name.required, name.text, name.section) == (True, "must be given", None)
    assert (maybe.section, maybe.default) == (Inner, None)
    assert (bare.default, bare.text) == ([1.0], "")
    assert (inner.section, inner.required) == (Inner, False)


def test_a_subclass_keeps_and_overrides_texts():
    texts = {info.name: info.text for info in fields_of(Wider)}
    assert texts == {"name": "has a default", "maybe": "", "bare": "", "inner": "section", "more": "new"}


def test_describe_goes_down_with_the_defaults_of_the_owner():
    assert describe(Outer, prefix="x.") == [
        FieldDoc("x.name", "str", "(required)", "must be given"),
        FieldDoc("x.maybe.a", "int", "1", "first"),
        FieldDoc("x.bare", "list[float]", "[1.0]", ""),
        FieldDoc("x.inner.a", "int", "5", "first"),
    ]


def test_describe_puts_plugins_in_place():
    keys = [row.key for row in describe(RunConfig, {"method": Wider})]
    assert "method.more" in keys
    assert "method.inner.a" in keys
    assert keys[:4] == ["name", "out", "seed", "cache"]
    assert describe(RunConfig)[0] == FieldDoc("name", "str", "(required)", "name of the run; it is kept in <out>/<name>")


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (int, "int"),
        (Optional[str], "str or null"),  # noqa: UP045
        (Union[int, list[int]], "int or list[int]"),  # noqa: UP007
        (dict[str, float], "dict[str, float]"),
        (Literal["a", 1], "a | 1"),
        (Colour, "RED | BLUE"),
    ],
)
def test_type_names(hint, name):
    assert type_name(hint) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (False, "false"),
        (0.0005, "0.0005"),
        ("", "''"),
        (" ", "' '"),
        ("a\nb", r"'a\nb'"),
        ({"a": None}, "{a: null}"),
        (Colour.RED, "RED"),
    ],
)
def test_values_as_yaml(value, text):
    assert show(value) == text
