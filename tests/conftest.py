"""What all tests share: the embedded world, built once for a whole session."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from unlearn.types import Assets, EntityData
from unlearn.world.source import WorldConfig, WorldSource

CACHE = Path(os.environ.get("UNLEARN_CACHE") or Path.home() / ".cache" / "unlearn")
"""Read once, before any test changes the environment."""


@dataclass(frozen=True)
class SharedWorld:
    """The seed-0 world with the default parameters."""

    source: WorldSource
    assets: Assets
    data: EntityData


@pytest.fixture(scope="session")
def world_cache() -> Path:
    """Folder in which the world is kept from one session to the next."""
    return CACHE


@pytest.fixture(scope="session")
def world(world_cache: Path) -> SharedWorld:
    """The default world, built when the cache does not hold it (minutes)."""
    source = WorldSource(WorldConfig(), seed=0, cache=world_cache)
    return SharedWorld(source, source.assets(progress=False), source.load())
