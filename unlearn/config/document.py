"""What a configuration dataclass says about itself: every key with its type, default and text.

The text of a field is the string that stands under it in the class body.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

from omegaconf import MISSING


class FieldInfo(NamedTuple):
    """One field of a dataclass. ``section`` is the dataclass behind it (also through ``X | None``), None for a leaf."""

    name: str
    hint: Any
    section: type | None
    default: Any
    text: str

    @property
    def required(self) -> bool:
        """Whether a configuration must set it."""
        return bool(isinstance(self.default, str) and self.default == MISSING)


class FieldDoc(NamedTuple):
    """One key as a reader of the configuration sees it; all four are plain text."""

    key: str
    type: str
    default: str
    text: str


def docstrings(cls: type) -> dict[str, str]:
    """Strings under the fields of ``cls`` itself (not of its bases), one line each."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # made at run time: there is no source to read
        return {}
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def _section(hint: Any) -> type | None:
    candidates = [a for a in typing.get_args(hint) if a is not type(None)] if is_union(hint) else [hint]
    if len(candidates) == 1 and isinstance(candidates[0], type) and dataclasses.is_dataclass(candidates[0]):
        return candidates[0]
    return None


def is_union(hint: Any) -> bool:
    """Whether ``hint`` is ``X | Y`` or ``Optional[X]``."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


@cache
def fields_of(cls: type) -> tuple[FieldInfo, ...]:
    """Fields of a dataclass with resolved types, in order; a field without a default counts as required."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        texts.update(docstrings(base) if dataclasses.is_dataclass(base) else {})
    hints = typing.get_type_hints(cls)
    return tuple(
        FieldInfo(f.name, hints[f.name], _section(hints[f.name]), _default(f), texts.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if f.init
    )


def type_name(hint: Any) -> str:
    """A type as it is shown to readers.

    >>> type_name(list[float]), type_name(str | None), type_name(Literal["a", "b"])
    ('list[float]', 'str or null', 'a | b')
    """
    if hint is type(None):
        return "null"
    if is_union(hint):
        return " or ".join(type_name(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return " | ".join(str(a) for a in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(hint.__members__)
    if typing.get_origin(hint) is not None:
        return str(hint).replace("typing.", "")
    return getattr(hint, "__name__", str(hint))


def show(value: Any) -> str:
    """A value as YAML writes it on one line.

    >>> show(None), show(True), show(""), show([0.9, 0.95]), show("world")
    ('null', 'true', "''", '[0.9, 0.95]', 'world')
    """
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, str):
        return repr(value) if value == "" or value != value.strip() or "\n" in value else value
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def describe(config_type: type, sections: Mapping[str, type] | None = None, prefix: str = "", base: Any = None) -> list[FieldDoc]:
    """Every key below ``config_type``, depth first.

    Args:
        config_type: a configuration dataclass.
        sections: dataclasses to put in place of the declared ones, by full key, for example ``{"method": NPOConfig}``.
        prefix: text before every key, for example ``"optim."``.
        base: an instance whose values are the defaults; None takes the class's own.
    """
    rows: list[FieldDoc] = []
    for info in fields_of(config_type):
        key = prefix + info.name
        default = getattr(base, info.name) if base is not None else info.default
        if info.section is None:
            rows.append(FieldDoc(key, type_name(info.hint), "(required)" if info.required else show(default), info.text))
            continue
        section = (sections or {}).get(key, info.section)
        rows += describe(section, sections, f"{key}.", default if type(default) is section else None)
    return rows
