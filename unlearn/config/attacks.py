"""The section ``attack`` of ``unlearn attack``: one typed subsection for each attack of a suite, from files and overrides.

::

    attack:
      relearn: {lrs: [3.0e-4], steps: [5, 20, 50]}
      sample: {draws: 16}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from unlearn.config.layers import Layer, read_any, read_override
from unlearn.config.load import Origin, load_config
from unlearn.errors import ConfigError, did_you_mean
from unlearn.registry import entries

SUITES = ("quick", "full")
SECTION = "attack"


@cache
def _root() -> type:
    """A dataclass with nothing but the section ``attack``, a field for each attack."""
    fields = []
    for name, entry in entries("attack").items():
        config = entry.load().Config
        fields.append((name, config, dataclasses.field(default_factory=config)))
    section = dataclasses.make_dataclass("AttackSection", fields, frozen=True, kw_only=True)
    return dataclasses.make_dataclass(
        "AttackSettings", [(SECTION, section, dataclasses.field(default_factory=section))], frozen=True, kw_only=True
    )


def chosen_attacks(suite: str) -> list[str]:
    """Names of the attacks of a suite: ``quick``, ``full`` (all), or names with commas.

    Raises:
        ConfigError: a name is not known.
    """
    known = entries("attack")
    if suite in SUITES:
        return [name for name, entry in known.items() if suite == "full" or entry.facts.get("quick") is not None]
    names = list(dict.fromkeys(name.strip() for name in suite.split(",") if name.strip()))
    for name in names or [""]:
        if name not in known:
            offered = [*SUITES, *known]
            raise ConfigError(f"--suite must be {', '.join(SUITES)} or names of attacks; found {name!r}.{did_you_mean(name, offered)}")
    return names


def quick_settings() -> dict[str, dict[str, Any]]:
    """What the suite ``quick`` changes, by attack."""
    return {name: dict(entry.facts["quick"]) for name, entry in entries("attack").items() if entry.facts.get("quick")}


def separate(sources: Sequence[Origin], overrides: Sequence[str]) -> tuple[list[Layer], list[Layer]]:
    """(layers of the section ``attack``, layers of everything else), in order.

    Raises:
        ConfigError: a file or override that cannot be read.
    """
    layers = [*(read_any(item) for item in sources), *(read_override(text) for text in overrides)]
    mine = [Layer({SECTION: layer.tree[SECTION]}, layer.label, layer.prefix) for layer in layers if SECTION in layer.tree]
    rest = [Layer({k: v for k, v in layer.tree.items() if k != SECTION}, layer.label, layer.prefix) for layer in layers]
    return mine, [layer for layer in rest if layer.tree]


def attack_settings(suite: str, layers: Sequence[Layer] = ()) -> Mapping[str, Any]:
    """The configuration of each attack of ``suite``, by name; ``layers`` win over the suite.

    Raises:
        ConfigError: an unknown attack or key, a wrong type or range; every problem is listed.
    """
    names = chosen_attacks(suite)
    first = [Layer({SECTION: quick_settings()})] if suite == "quick" else []
    built: Any = load_config([Layer({}), *first, *layers], (), {}, _root())
    return {name: getattr(getattr(built, SECTION), name) for name in names}
