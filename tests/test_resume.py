"""Runs that are killed at any moment end as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forks import told_by
from tests.kills import CASES, MOMENTS, STEPS, points
from tests.wholes import EVERY
from unlearn.errors import RunError
from unlearn.tracking import checkpoint as checkpoints
from unlearn.tracking.checkpoint import DurableCheckpointIO, damage, newest, previous
from unlearn.tracking.randomness import random_state, set_random_state


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """20 kills of one process and 2 of one of two: weights, random state of every rank, counters and rows of the log."""
    planned = points(20, 6)
    assert {case for case, _ in planned} == set(CASES)
    assert {kill.moment for _, kill in planned} == set(MOMENTS)
    found = told_by("tests.kills", tmp_path)
    assert len(found["trials"]) == 20
    for trial in [*found["trials"], *found["ranks"]]:
        assert -9 in trial["killed"], trial
        assert set(trial["resumed"]) == {0}, trial
        assert trial["equal"] == {"weights": True, "dice": True, "rows": True, "n": True}, trial
    assert sum(trial["from"] != "" for trial in found["trials"]) >= 8  # the others died before the first checkpoint
    for trial in found["ranks"]:
        lost = trial["kill"]["rank"]
        assert trial["killed"][1 - lost] == 1
        assert f"found process {lost} of 2 (counted from 0) gone" in trial["survivor"]["reason"]
        assert "--resume" in trial["survivor"]["reason"]


EXITS = {"kill": -9, "SIGT": 75, "SIGU": 75, "Ctrl": 130}


@pytest.mark.slow
def test_whole_runs_go_on_after_kills_signals_and_damaged_checkpoints(tmp_path: Path) -> None:
    """Weights, results, rows of metrics.jsonl and of MLflow: each exactly as often as in a run that was left alone."""
    found = told_by("tests.wholes", tmp_path)
    assert len(found["trials"]) == 8
    for trial in found["trials"]:
        name = trial["fault"]
        assert trial["exit"] == EXITS[name[:4]], trial
        assert trial["resumed"] == 0, trial
        assert set(trial["equal"].values()) == {True}, trial
        assert trial["mlflow_runs"] == ["FINISHED"], trial
        if trial["exit"] != -9:
            assert trial["status"]["state"] == "killed"
        if trial["exit"] == 75:
            assert f"preempted ({name.split()[0]})" in trial["status"]["reason"]
            assert "--resume" in trial["said"]
        answer = " ".join(trial["answer"].split())
        damaged = name.count("damaged") * (1 + name.count("both"))
        assert answer.count("found it damaged: its checksum is") == damaged
        assert f"goes on from {'its first step' if 'both' in name else 'last.previous.ckpt'}." in answer or not damaged
    assert STEPS % EVERY == 0
    assert found["rows"] > 40


def saved(io: DurableCheckpointIO, path: Path, step: int) -> None:
    io.save_checkpoint({"step": step, "weights": torch.full((1000,), float(step))}, path)


def test_the_last_two_checkpoints_are_kept_and_stay_plain_torch_files(tmp_path: Path) -> None:
    io, path = DurableCheckpointIO(), tmp_path / "last.ckpt"
    for step in range(3):
        saved(io, path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    assert torch.load(path, weights_only=True)["step"] == 2
    assert torch.load(previous(path), weights_only=True, mmap=True)["weights"][0] == 1
    assert io.load_checkpoint(path)["step"] == 2


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda data: data[: len(data) // 2], "it has no checksum at its end"),
        (lambda data: data[:-200], "it has no checksum at its end"),
        (lambda data: b"", "it is too short"),
        (lambda data: data[:900] + bytes([data[900] ^ 1]) + data[901:], "its checksum is"),
        (lambda data: bytes(len(data)), "it has no checksum at its end"),
        (lambda data: data + b"\0", "it has no checksum at its end"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used(tmp_path: Path, harm: Any, words: str) -> None:
    io, path = DurableCheckpointIO(), tmp_path / "last.ckpt"
    saved(io, path, 1)
    saved(io, path, 2)
    path.write_bytes(harm(path.read_bytes()))
    assert damage(path).startswith(words)
    with pytest.raises(RunError, match=rf"last\.ckpt must be as it was written; found it damaged: {words}"):
        io.load_checkpoint(path)
    kept, said = newest(tmp_path)
    assert kept == previous(path)
    assert len(said) == 1
    assert words in said[0]
    saved(DurableCheckpointIO(), path, 3)  # a resumed process: the damaged file must not push out the whole one
    assert io.load_checkpoint(path)["step"] == 3
    assert io.load_checkpoint(previous(path))["step"] == 1


def test_every_byte_of_a_checkpoint_is_covered(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved(DurableCheckpointIO(), path, 1)
    data = path.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 200)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        assert damage(path), place


def test_a_whole_checkpoint_that_never_had_a_checksum_is_gone_on_with(tmp_path: Path) -> None:
    """As Lightning writes it; damage is found by the records' own check values, a lost end by what it ends with."""
    io, path = DurableCheckpointIO(), tmp_path / "last.ckpt"
    torch.save({"step": 7, "weights": torch.arange(500.0)}, path)
    data = path.read_bytes()
    assert damage(path) == ""
    assert io.load_checkpoint(path)["step"] == 7
    saved(io, path, 8)
    assert newest(tmp_path) == (path, [])
    assert torch.load(previous(path), weights_only=True)["step"] == 7
    place = data.index(torch.arange(500.0).numpy().tobytes()) + 1000
    for harmed in (data[:-1], data + b"\0", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]):
        path.write_bytes(harmed)
        assert damage(path) == "it has no checksum at its end"


def test_a_checksum_that_is_cut_off_leaves_a_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved(DurableCheckpointIO(), path, 1)
    data = path.read_bytes()
    for left in range(1, checkpoints.LENGTH + 1):
        path.write_bytes(data[:-left])
        assert damage(path) == "it has no checksum at its end", left


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "trapped"),))

    path = tmp_path / "last.ckpt"
    with path.open("wb") as file:
        torch.save({"step": Trap()}, file)
    with pytest.raises(RunError, match="must hold tensors and plain values only"):
        DurableCheckpointIO().load_checkpoint(path)
    checkpoints.write({"step": Trap()}, path)  # one that somebody has given a checksum
    for load in (DurableCheckpointIO().load_checkpoint, checkpoints.read):
        with pytest.raises(Exception, match="weights_only"):
            load(path)
    assert not (tmp_path / "trapped").exists()


def test_a_file_system_without_second_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    io, path = DurableCheckpointIO(), tmp_path / "last.ckpt"
    saved(io, path, 1)
    saved(io, path, 2)
    assert [io.load_checkpoint(p)["step"] for p in (path, previous(path))] == [2, 1]


def test_the_random_state_survives_a_checkpoint(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(2).tolist(), float(np.random.randn())

    draw()  # numpy and Python keep the second of two normal numbers
    checkpoints.write({"rng": random_state()}, tmp_path / "a")
    first = draw()
    draw()
    set_random_state(checkpoints.read(tmp_path / "a")["rng"])
    assert draw() == first
