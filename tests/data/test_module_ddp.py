"""Two real processes against one: the same rows in every optimiser step, the same weights, also after a restart in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.data.test_module import Learner, fit, module
from unlearn.config.schema import BatchConfig
from unlearn.types import STREAMS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All three, in the same two processes: the folder, and what came of it."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(ROOT / "tests/data/two_ranks.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return folder, subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def served(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


@pytest.mark.slow
def test_two_processes_train_on_what_one_does(done, tmp_path):
    folder, ended = done
    alone = Learner()
    fit(alone, module(batch=BatchConfig(forget=4, retain=4, known=4, unknown=8)), tmp_path / "one")
    ranks = served(folder / "two")
    assert [len(rank["seen"]) for rank in ranks] == [12, 12], ended.stderr[-2000:]
    for step, whole in enumerate(alone.seen):
        for stream in STREAMS:
            shares = [micro[stream] for rank in ranks for micro in rank["seen"][2 * step : 2 * step + 2]]
            assert sorted(sum(shares, [])) == sorted(whole[stream])
    assert ranks[0]["weight"] == ranks[1]["weight"]
    assert torch.allclose(torch.tensor(ranks[0]["weight"]), alone.weight, atol=1e-6)

    resumed = served(folder / "again")
    assert [rank["seen"] for rank in resumed] == [rank["seen"][8:] for rank in ranks], ended.stderr[-2000:]
    assert resumed[0]["weight"] == ranks[0]["weight"]


@pytest.mark.slow
def test_lightning_refuses_to_put_its_own_sampler_in(done):
    folder, ended = done
    assert ended.returncode != 0
    assert "use_distributed_sampler=False" in ended.stderr
    assert served(folder / "shared") == []
