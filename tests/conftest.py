"""What all tests share: the embedded world, built once for a whole session."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from unlearn.types import Assets, EntityData
from unlearn.world.source import WorldConfig, WorldSource

if TYPE_CHECKING:
    from tests.architectures import Hub

CACHE = Path(os.environ.get("UNLEARN_CACHE") or Path.home() / ".cache" / "unlearn")
"""Read once, before any test changes the environment."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; commands that tests start would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


collect_ignore = ["gpu"]
"""Tests that need a CUDA device; `make test-gpu` names them."""

gc.disable()
"""While tests are collected: what is imported stays, and looking through it again and again takes a fifth of the time."""


def pytest_collection_finish() -> None:
    gc.enable()


LONG = (
    "test_quickstart.py",
    "distributed/test_methods_ddp.py",
    "distributed/test_launch.py",
    "test_readme.py",
    "sweep/test_runs.py",
    "comparison/test_compare.py",
    "test_resume.py",
    "test_faults.py",
    "attacks/test_world.py",
    "test_run.py",
    "test_presets.py",
    "test_accumulate.py",
    "distributed/test_sharded.py",
    "test_talk.py",
    "test_doctor.py",
    "estimate/test_memory.py",
    "data/test_module_ddp.py",
    "test_lm_eval.py",
    "tracking/test_stack.py",
    "test_benchmark.py",
    "report/test_browser.py",
)
"""Files that take longest, the longest first (`make test` prints what takes long)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first: ``--dist loadfile --no-loadscope-reorder`` hands files out in this order, and a long one that came last would
    keep one process busy while the others have nothing left to do."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@dataclass(frozen=True)
class SharedWorld:
    """The seed-0 world with the default parameters."""

    source: WorldSource
    assets: Assets
    data: EntityData


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """Leave what is loaded out of garbage collections: it is nearly all there is, and every run that is measured collects before it
    begins."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def world_cache() -> Path:
    """Folder in which the world is kept from one session to the next."""
    return CACHE


@pytest.fixture(scope="session")
def world(world_cache: Path) -> SharedWorld:
    """The default world, built when the cache does not hold it (minutes)."""
    source = WorldSource(WorldConfig(), seed=0, cache=world_cache)
    return SharedWorld(source, source.assets(progress=False), source.load())


@pytest.fixture(scope="session")
def all_small_models(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A hub cache for small models of the true architectures; ``need`` makes those that a test names."""
    from tests.architectures import Hub

    return Hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def small_hub(all_small_models: Hub) -> Iterator[Hub]:
    """The same, with this process looking nowhere else for public models and SAEs while a module's tests run."""
    from tests.architectures import redirected

    with redirected(all_small_models):
        yield all_small_models
