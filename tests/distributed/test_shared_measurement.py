"""Two and four processes measure what one does."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.toys import Toy, toy


def measured(made: Toy, batch_size: int = 8) -> dict[str, float]:
    suite = made.suite(null_draws=5, bootstrap=50, batch_size=batch_size)
    suite.reader = made.reader(batch_size)
    return suite.measure_base(made.lm).results


def worker(rank: int, size: int, folder: Path, made: Toy) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    (folder / f"{rank}.json").write_text(json.dumps(measured(made)))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    torch.set_num_threads(1)
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def alone(made: Toy) -> dict[str, float]:
    return measured(made)


def differences(a: dict[str, float], b: dict[str, float]) -> dict[str, tuple[float, float]]:
    assert a.keys() == b.keys()
    return {k: (a[k], b[k]) for k in a if not (math.isclose(a[k], b[k], rel_tol=1e-6, abs_tol=1e-6) or (a[k] != a[k] and b[k] != b[k]))}


@pytest.mark.parametrize("size", [2, 4])
def test_every_process_has_the_numbers_of_one_process(made: Toy, alone: dict[str, float], tmp_path: Path, size: int) -> None:
    context = multiprocessing.get_context("fork")  # the children take over what the parent has loaded
    ranks = [context.Process(target=worker, args=(rank, size, tmp_path, made)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
    assert [rank.exitcode for rank in ranks] == [0] * size
    for rank in range(size):
        assert differences(json.loads((tmp_path / f"{rank}.json").read_text()), alone) == {}


def test_the_batch_size_does_not_matter(made: Toy, alone: dict[str, float]) -> None:
    assert differences(measured(made, batch_size=3), alone) == {}
