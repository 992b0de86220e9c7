"""What a fair comparison may turn of a method: learning rate, steps, and the knobs that stand in its class body (``search``).

Ranges are those of a sweep file (``low`` and ``high`` with ``log``, ``int`` or ``step``; or ``choices``). Numbers under ``optim`` are
multiples of the configuration's own value, so that one space serves a model of a million parameters and one of seven billion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearn.config.fingerprint import flatten
from unlearn.config.schema import RunConfig
from unlearn.registry import find

Space = dict[str, dict[str, Any]]

COMMON: Mapping[str, Mapping[str, Any]] = {
    "optim.lr": {"low": 0.2, "high": 5.0, "log": True},
    "optim.steps": {"low": 1 / 3, "high": 1.0, "int": True},
}
"""Turned for every method that takes optimiser steps, in multiples of the configuration's own; a method may name other bounds."""


def method_space(run: RunConfig, more: Mapping[str, Mapping[str, Any]] | None = None) -> Space:
    """What may be turned of ``run.method``, by dotted key.

    Args:
        run: gives the method, and the learning rate and steps that bounds are multiples of.
        more: further keys, or other bounds for keys that are there.

    Raises:
        ConfigError: the method is not known.
    """
    facts = find("method", run.method.name, "method.name").facts
    steps = bool(facts.get("streams", True))  # a method that states none has those of the one it is made from
    given = {**(COMMON if steps else {}), **facts.get("search", {})}
    own = {"optim.lr": run.optim.lr, "optim.steps": run.optim.steps}
    space = {key: _times(bounds, own[key]) if key in own else dict(bounds) for key, bounds in given.items()}
    space = {key: bounds for key, bounds in space.items() if "choices" in bounds or bounds["low"] < bounds["high"]}  # steps: 1
    return space | {key: dict(bounds) for key, bounds in (more or {}).items()}


def _times(bounds: Mapping[str, Any], value: float) -> dict[str, Any]:
    """``bounds`` in multiples of ``value``; whole numbers are rounded, and at least 1."""
    whole = bool(bounds.get("int"))
    ends = {name: bounds[name] * value for name in ("low", "high")}
    return {**bounds, **{name: max(1, round(end)) if whole else float(f"{end:.6g}") for name, end in ends.items()}}


def default_point(run: RunConfig, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The configuration's own value of every key of ``space`` that holds it; tuning tries it first."""
    flat = flatten(run)
    return {key: flat[key] for key, bounds in space.items() if key in flat and _holds(bounds, flat[key])}


def _holds(bounds: Mapping[str, Any], value: Any) -> bool:
    if "choices" in bounds:
        return value in bounds["choices"]
    return isinstance(value, int | float) and bounds["low"] <= value <= bounds["high"]
