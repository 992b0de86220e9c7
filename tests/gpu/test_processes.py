"""Processes on a GPU: one under torchrun with NCCL, since a GPU takes one of its processes only, and two that share a GPU through gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launchers import environment, write_config
from tests.forks import free_port
from tests.gpu.device import ACCELERATOR, DEVICE, note
from tests.lines import ROOT
from tests.mini import make_mini
from tests.sharded import QUICK, differs_by

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
SCRIPT = str(ROOT / "experiments" / "run.py")
NCCL = "gloo" if DEVICE == "cpu" else "nccl"


def launched(folder: Path, commands: list[list[str]]) -> None:
    """Run all commands at once and wait for them."""
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    clean = environment(folder, PYTHONPATH=places)
    running = [
        subprocess.Popen(command, cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(commands), "\n".join(text[-3000:] for text in said)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run plainly, and under torchrun with DDP and FSDP2."""
    folder = tmp_path_factory.mktemp("runs")
    config = {**make_mini(folder, tracked=False), "method": {"name": "sae_guided"}, "out": str(folder)}
    config["trainer"] = {**config["trainer"], "accelerator": ACCELERATOR}
    path = str(write_config(folder, config))

    def words(name: str, *more: str) -> list[str]:
        return [SCRIPT, path, *QUICK, f"name={name}", f"cache={folder / name}-cache", *more]

    plain = [sys.executable, *words("plain", "trainer.devices=1")]
    launched(folder, [plain, *([*TORCHRUN, *words(name, f"trainer.strategy={name}")] for name in ("ddp", "fsdp2"))])
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_of_one_process_under_torchrun_is_the_plain_run(runs: Path, strategy: str) -> None:
    found = differs_by(runs / "plain", runs / strategy)
    note("torchrun", case=strategy, **found)
    assert json.loads((runs / strategy / "manifest.json").read_text())["processes"]["launcher"] == "torchelastic"
    assert found["loss"] <= 1e-5
    assert found["weights"] <= 1e-5
    assert found["results"] <= 1e-3
    assert found["moved"] > 1e-4


def ranks(folder: Path, backend: str, size: int) -> list[dict[str, Any]]:
    """What each of ``size`` processes on the device found (0: one without a process group)."""
    folder.mkdir()
    port, count = str(free_port()), max(1, size)
    words = [[sys.executable, "-m", "tests.gpu.ranks", backend, str(rank), str(size), DEVICE, port, str(folder)] for rank in range(count)]
    launched(folder, words)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]


def test_rows_and_metrics_are_shared_between_processes_on_the_device(tmp_path: Path) -> None:
    """Two processes on one device, through gloo: what losses are made of is what one process makes of all rows."""
    (alone,), both = ranks(tmp_path / "one", "none", 0), ranks(tmp_path / "two", "gloo", 2)
    for rank, seen in enumerate(both):
        for key in ("total", "averaged"):
            assert seen[key] == pytest.approx(alone[key], rel=1e-5)
        assert seen["variance"] == pytest.approx(alone["variance"], rel=1e-5)
        assert seen["rows"] == alone["rows"]
        assert seen["own"] == alone["own"][rank::2]
        assert seen["largest"] == 4
        for mine, whole in zip(seen["gradient"], alone["gradient"][rank::2], strict=True):
            assert mine == pytest.approx(whole, rel=1e-4, abs=1e-6)
        assert seen["collectives"] == {
            "summed": [3.0, 1.0], "most": 1, "counts": [3, 4], "parts": [0.0, 1.0], "box": 0, "states": 2, "spread": [0, 2, 4, 6, 8],
            "perplexity": pytest.approx(4.0),
        }  # fmt: skip


def test_the_collectives_work_with_nccl(tmp_path: Path) -> None:
    """In one process, which is all that NCCL takes on one GPU."""
    (found,) = ranks(tmp_path / "nccl", NCCL, 1)
    assert found["collectives"] == {
        "summed": [1.5, 0.0], "most": 0, "counts": [3], "parts": [0.0], "box": 0, "states": 1, "spread": [0, 2, 4, 6, 8],
        "perplexity": pytest.approx(4.0),
    }  # fmt: skip
