"""What breaks around a run: it ends well, and what was measured until then is on disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forks import told_by
from tests.wholes import flip
from unlearn.callbacks.ranks import BEAT_S, GRACE_S, SILENT, is_exchange
from unlearn.errors import CacheError, DataError, RunError
from unlearn.latents.banks import POSITIONS, Banks
from unlearn.tracking import files
from unlearn.tracking.checkpoint import DurableCheckpointIO
from unlearn.tracking.files import alone, read_json
from unlearn.tracking.rundir import RunDirectory
from unlearn.tracking.tensors import load_tensors, save_tensors
from unlearn.world.cache import obtain

WHOLE = list(range(6))
"""Steps of a run that was not stopped."""


@pytest.mark.slow
def test_whole_runs_end_well_whatever_breaks(tmp_path: Path) -> None:
    """Each run is started by the command line in a process of its own; a report is made of each one afterwards."""
    found = {entry["fault"]: entry for entry in told_by("tests.breakage", tmp_path)}
    assert "a report cannot be made" not in found
    for entry in found.values():
        assert "name" not in entry or entry["report"] > 10_000, entry

    for fault in (
        "the store is down at the start",
        "the store goes away at step 3",
        "the store hangs: it takes connections and never answers",
    ):
        entry = found.pop(fault)
        assert (entry["exit"], entry["status"]["state"], entry["steps_on_disk"]) == (0, "finished", WHOLE), entry
        assert entry["said"].count("does not take this run's values") == 1, entry
        assert entry["results"] > 20

    clock = found.pop("the clock jumps by hours at every look")
    assert (clock["exit"], clock["steps_on_disk"]) == (0, WHOLE), clock
    assert 0 < clock["train_seconds"] < 600

    small = found.pop("no room for the checkpoint of step 4")
    assert (small["exit"], small["status"]["state"], small["steps_on_disk"]) == (2, "failed", [0, 1, 2]), small
    assert (
        "last.ckpt must be a checkpoint that can be written; found: File too large (the one before it, last.ckpt, is whole)"
        in small["said"]
    )
    assert small["checkpoints"] == ["last.ckpt"]
    full = found.pop("no room for anything from step 3 on")
    assert (full["exit"], full["status"]["state"]) == (2, "failed"), full
    assert "metrics.jsonl must be a file that can be written" in full["status"]["reason"]
    assert full["steps_on_disk"] == [0, 1, 2]

    diverged = found.pop("the loss is not finite")
    assert (diverged["exit"], diverged["status"]["state"]) == (2, "failed")
    assert "must be finite; found nan or inf" in diverged["status"]["reason"]
    assert diverged["steps_on_disk"] == list(range(len(diverged["steps_on_disk"])))
    assert diverged["steps_on_disk"]

    for name in ("torn", "bytes"):
        entry = found.pop(f"line 5 of the data is damaged ({name})")
        assert entry["exit"] == 2
        assert f"{name}.jsonl:5 must be" in entry["said"]

    for kind in ("banks", "reference", "base"):
        damaged, again = found.pop(f"the cached {kind} are damaged"), found.pop(f"the cached {kind} have been deleted")
        assert damaged["exit"] == 2, damaged
        assert Path(damaged["file"]).name in damaged["said"].replace(" ", "")
        assert "elete" in damaged["said"]
        assert (again["exit"], again["status"]["state"]) == (0, "finished"), again

    twins = found.pop("two processes build the same caches at once")
    assert twins["exit"] == [0, 0], twins
    assert twins["built"] == ["save", "write_atomic", "write_store"]
    assert twins["states"] == ["finished", "finished"]
    assert found.pop("none")["exit"] == 0
    assert found == {}


@pytest.mark.slow
def test_when_one_process_of_two_is_lost_the_other_stops_and_says_which(tmp_path: Path) -> None:
    found = {entry["fault"]["how"]: entry for entry in told_by("tests.kills", tmp_path, "ranks")}
    gone = "found process 1 of 2 (counted from 0) gone, killed or stopped"

    stopped = found["SIGSTOP"]  # the other one hangs in an exchange; only its watch can end it
    assert stopped["exit"] == [2, -9], stopped
    assert stopped["said"]["0"]["error"] == "hung"
    assert gone in stopped["said"]["0"]["reason"]
    failed = found["raise"]
    assert failed["exit"] == [1, 1], failed
    assert failed["said"]["1"] == {"reason": "", "error": "no memory left for this batch"}
    assert failed["said"]["0"]["reason"].startswith("Process 1 of 2 failed, and the others stopped with it: no memory left")
    diverged = found["nan"]
    assert diverged["exit"] == [1, 1], diverged
    assert all("train/loss at step 3 must be finite" in said["error"] for said in diverged["said"].values())
    assert "last_good.ckpt" in diverged["checkpoints"]
    told = found["SIGTERM"]  # a scheduler that tells one process only
    assert told["exit"] == [75, 75], told
    for entry in found.values():
        assert entry["steps_on_disk"][:3] == [0, 1, 2], entry
        assert "last.ckpt" in entry["checkpoints"], entry


def test_a_lost_process_is_noticed_within_a_minute() -> None:
    assert (SILENT + 1) * BEAT_S + GRACE_S < 60


def test_errors_of_an_exchange_are_told_from_a_process_s_own() -> None:
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:13508"
    assert is_exchange(RuntimeError(gloo))
    assert is_exchange(torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1"))
    assert not is_exchange(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_exchange(RunError("train/loss at step 3 must be finite"))


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_every_file_of_a_run_names_itself_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path, "run")
    io, path = DurableCheckpointIO(), run.checkpoints / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)
    run.write_results({"a": 1})
    monkeypatch.setattr(files.os, "replace", full)
    words = "No space left on device"
    with pytest.raises(RunError, match=rf"last\.ckpt must be a checkpoint that can be written; found: {words} \(the one before it"):
        io.save_checkpoint({"step": 2}, path)
    with pytest.raises(RunError, match=rf"results\.json must be a file that can be written; found: {words}"):
        run.write_results({"b": 2})
    with pytest.raises(RunError, match=rf"weights\.safetensors must be a file that can be written; found: {words}"):
        run.write_weights({"a": torch.zeros(3)})
    run.set_status("failed", "the disk is full")  # over the old one
    monkeypatch.undo()
    assert io.load_checkpoint(path)["step"] == 1
    assert read_json(run.results_path) == {"a": 1}
    assert read_json(run.status_path)["reason"] == "the disk is full"
    assert [p.name for p in run.path.rglob("*.tmp")] == []


def test_torch_s_word_for_a_full_disk_becomes_the_disk_s(tmp_path: Path) -> None:
    """A real file on a device that is always full."""
    from unlearn.tracking.checkpoint import write

    with pytest.raises(OSError, match="No space left on device") as caught:
        write({"weights": torch.zeros(1_000_000)}, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


def test_weights_carry_a_checksum(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "run")
    state = {"lm.a": torch.randn(50, 40), "method.b": torch.arange(3.0).bfloat16(), "lm.c": torch.tensor(2)}
    path = run.write_weights(state)
    assert all(torch.equal(value, state[name]) for name, value in run.read_weights().items())
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    with pytest.raises(RunError, match=r"weights\.safetensors must hold the run's final weights; found a damaged file \(checksum"):
        run.read_weights()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="found a damaged file"):
        run.read_weights()


def test_banks_with_a_turned_bit_are_refused(tmp_path: Path) -> None:
    sides = {side: {p: torch.randn(4, 8) for p in POSITIONS} for side in ("known", "unknown", "matched")}
    path = tmp_path / "banks.safetensors"
    Banks(1, **sides, matched_ids=torch.arange(4)).save(path)
    assert torch.equal(Banks.load(path, 1).known["entity_end"], sides["known"]["entity_end"])
    data = path.read_bytes()
    path.write_bytes(data[:-7] + bytes([data[-7] ^ 64]) + data[-6:])
    with pytest.raises(CacheError, match=r"banks\.safetensors is damaged \(checksum .*\); delete it and run again\."):
        Banks.load(path, 1)


def test_a_world_with_a_turned_bit_is_refused(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_bytes(bytes(100_000))
        return {}

    obtain(tmp_path / "world", build)
    flip(tmp_path / "world" / "model.safetensors")
    with pytest.raises(CacheError, match=r"must hold model\.safetensors with sha256 .*; found .*; delete .*world and run again"):
        obtain(tmp_path / "world", build)


def test_one_process_builds_while_the_others_wait(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom unlearn.tracking.files import alone\n"
        "path = Path(sys.argv[1])\n"
        "with alone(path):\n"
        "    if not path.exists():\n"
        "        time.sleep(0.3)\n"
        "        with path.with_name('built').open('a') as file: file.write('x')\n"
        "        path.write_text('done')\n"
    )
    workers = [subprocess.Popen((sys.executable, "-c", code, str(tmp_path / "entry"))) for _ in range(3)]
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0, 0]
    assert (tmp_path / "built").read_text() == "x"


def test_a_lock_does_not_mind_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with alone(tmp_path / "a"):
        save_tensors(tmp_path / "a", {"x": torch.ones(1)})
    monkeypatch.setattr(time, "time", lambda: 1e12)
    with alone(tmp_path / "a"):
        assert load_tensors(tmp_path / "a")["x"] == 1


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    from unlearn.data.records import read_texts

    path = tmp_path / "texts.txt"
    path.write_bytes(b"one\ntwo\nthr\xffee\n")
    with pytest.raises(DataError, match=r"texts\.txt:3 must be a readable UTF-8 text file; found the byte 0xff\."):
        read_texts(path)
