"""Configurations as plain values: YAML, flat keys, what differs, and the fingerprint of everything that changes a result."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from unlearn import __version__

Scalar = str | int | float | bool | None

NO_EFFECT: frozenset[str] = frozenset(
    {
        "name",
        "out",
        "cache",
        "tracking",
        "trainer.accelerator",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.strategy",
        "trainer.progress_bar",
        "trainer.checkpoint_every",
        "trainer.threads",
        "trainer.start_timeout",
        "trainer.read_on",
    }
)
"""Keys (or whole sections) that say where and how a run is made, not what comes out of it."""

ADDED: Mapping[str, Scalar] = {
    "data.partition": "test",
    "model.chat.system": None,
    "model.chat.template": "auto",
    "model.chat.user": "{question}",
    "model.gradient_checkpointing": False,
    "model.quantise": None,
    "optim.name": "adamw",
}
"""Keys that came later, with the value that stands for what was done before; with it they do not count, so that older runs stay valid."""

ABSENT = "(absent)"
"""Stands in ``diff`` for a key that one side does not have."""


def plain(config: Any) -> Any:
    """Dataclasses as nested mappings, tuples as lists, enums by name, paths as text."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    if isinstance(config, enum.Enum):
        return config.name
    return str(config) if isinstance(config, Path) else config


def to_yaml(config: Any) -> str:
    """Every key with its value; ``load_config`` reads it back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def flatten(config: Any, prefix: str = "") -> dict[str, Scalar]:
    """Dotted keys; a list becomes its JSON text.

    >>> flatten({"optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "seed": 0})
    {'optim.lr': 0.1, 'optim.betas': '[0.9, 0.95]', 'seed': 0}
    """
    flat: dict[str, Scalar] = {}
    for key, value in plain(config).items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, (list, dict)) else value
    return flat


def fingerprint(config: Any) -> str:
    """16 hexadecimal digits: SHA-256 of the package's version and of every key that is not under ``NO_EFFECT`` or as in ``ADDED``."""
    flat = {key: value for key, value in flatten(config).items() if (key, value) not in ADDED.items()}
    kept = {key: value for key, value in flat.items() if key not in NO_EFFECT and key.split(".", 1)[0] not in NO_EFFECT}
    text = json.dumps([__version__, kept], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def diff(a: Any, b: Any) -> list[tuple[str, Scalar, Scalar]]:
    """(key, value in ``a``, value in ``b``) of every key that differs, in the order of ``a``, then of ``b``.

    >>> diff({"seed": 0, "lr": 1.0}, {"seed": 1, "lr": 1.0, "beta": 0.1})
    [('seed', 0, 1), ('beta', '(absent)', 0.1)]
    """
    left, right = flatten(a), flatten(b)
    pairs = ((key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in dict.fromkeys([*left, *right]))
    return [(key, x, y) for key, x, y in pairs if x != y]
