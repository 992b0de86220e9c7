"""Plug-ins found by reading their files, not by importing them.

A plug-in is a class whose body assigns string literals to ``name`` and ``summary`` (``family``, ``paper``, ``streams`` and ``needs`` where
they apply). Reading the syntax tree keeps ``unlearn list`` free of torch; ``Entry.load`` imports the file when the class is wanted.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from unlearn.errors import ConfigError, did_you_mean

PACKAGE = Path(__file__).parent

KINDS: Mapping[str, tuple[str, ...]] = {
    "method": ("methods/*.py",),
    "source": ("data/sources/*.py", "world/*.py"),
    "maker": ("data/makers/*.py",),
    "attack": ("attacks/*.py",),
}
"""Where the plug-ins of each kind live, relative to the package."""

BASES: Mapping[str, str] = {"method": "Method", "source": "Source", "maker": "Maker", "attack": "Attack"}
"""A plug-in's class names this base, or another plug-in of its kind."""


@dataclass(frozen=True)
class Entry:
    """One plug-in: what its class body states, and where it stands."""

    kind: str
    name: str
    module: str
    qualname: str
    line: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """``path:line`` of the class, relative to the package's parent."""
        return f"{self.module.replace('.', '/')}.py:{self.line}"

    def load(self) -> Any:
        """Import the file and return the class."""
        return getattr(importlib.import_module(self.module), self.qualname)


def _facts(node: ast.ClassDef) -> dict[str, Any]:
    """Literal assignments of a class body; ``frozenset({...})`` reads as a sorted tuple."""
    facts: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            target, value = statement.targets[0].id, statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
            target, value = statement.target.id, statement.value
        else:
            continue
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "frozenset":
            facts[target] = tuple(sorted(ast.literal_eval(value.args[0]))) if value.args else ()
            continue
        try:
            facts[target] = ast.literal_eval(value)
        except ValueError:
            continue
    return facts


def _scan(kind: str) -> Iterator[Entry]:
    parsed = {path: ast.parse(path.read_text(encoding="utf-8")) for pattern in KINDS[kind] for path in sorted(PACKAGE.glob(pattern))}
    bases = {BASES[kind]}
    seen: set[str] = set()
    found: dict[str, Entry] = {}
    grew = True
    while grew:
        grew = False
        for path, tree in parsed.items():
            module = ".".join(("unlearn", *path.relative_to(PACKAGE).with_suffix("").parts))
            for node in tree.body:
                names = {b.id for b in getattr(node, "bases", []) if isinstance(b, ast.Name)}
                if not isinstance(node, ast.ClassDef) or node.name in seen or not names & bases:
                    continue
                bases.add(node.name)
                seen.add(node.name)
                grew = True
                facts = _facts(node)
                if isinstance(facts.get("name"), str):
                    found[node.name] = Entry(kind, facts["name"], module, node.name, node.lineno, facts)
    yield from found.values()


@cache
def entries(kind: str) -> Mapping[str, Entry]:
    """All plug-ins of ``kind`` (a key of ``KINDS``), by name, sorted."""
    return {entry.name: entry for entry in sorted(_scan(kind), key=lambda e: e.name)}


def find(kind: str, name: str, key: str | None = None) -> Entry:
    """The plug-in called ``name``.

    Raises:
        ConfigError: it is not known; the message names ``key``, what is known and the closest name.
    """
    known = entries(kind)
    if name not in known:
        raise ConfigError(f"{key or kind} must name a known {kind} ({', '.join(known)}); found {name!r}.{did_you_mean(name, known)}")
    return known[name]
