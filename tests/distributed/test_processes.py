"""Who is who in every launcher, and what processes tell each other before there is a process group."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forks import free_port
from unlearn import meeting
from unlearn.config.schema import TrainerConfig
from unlearn.errors import ConfigError, ElsewhereError, RunError
from unlearn.launch import check_nodes, start_processes, trainer_settings, wanted
from unlearn.meeting import PREPARED, Processes
from unlearn.processes import Place, place

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2",
}  # fmt: skip
FABRIC = {**TORCHRUN, "LT_CLI_USED": "1", "LT_DEVICES": "4", "LT_NUM_NODES": "2", "LT_ACCELERATOR": "cpu", "LT_PRECISION": "32"}
SRUN = {
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_JOB_NAME": "unlearn",
}  # fmt: skip
LIGHTNING = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        (TORCHRUN, Place("torchelastic", 5, 8, 1, 4, 1, 2)),
        (FABRIC, Place("torchelastic", 5, 8, 1, 4, 1, 2)),
        ({**SRUN, **TORCHRUN}, Place("torchelastic", 5, 8, 1, 4, 1, 2)),
        (SRUN, Place("slurm", 2, 4, 0, 2, 1, 2)),
        ({**SRUN, "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"}, Place()),
        (LIGHTNING, Place("variables", 1, 2, 1, 2, 0, 1)),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, Place("variables", 1, 2, 0, 1, 1, 2)),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, Place("variables", 1, 1, 0, 1, 1, 1)),
    ],
)
def test_every_launcher_is_understood(environment: dict[str, str], expected: Place) -> None:
    """The first process of the second node is not the one that writes, whatever its local rank."""
    assert place(environment) == expected


def test_lightning_sees_the_same_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for name, value in {**TORCHRUN, **SRUN}.items():
        monkeypatch.setenv(name, value)
    for environment, variables in ((TorchElasticEnvironment(), TORCHRUN), (SLURMEnvironment(), SRUN)):
        mine = place(variables)
        theirs = (environment.global_rank(), environment.world_size(), environment.local_rank(), environment.node_rank())
        assert theirs == (mine.rank, mine.size, mine.local_rank, mine.node)


class TestSettings:
    def settings(self, environment: dict[str, str], **said: Any) -> dict[str, str]:
        return trainer_settings(TrainerConfig(**said), environment)

    @pytest.mark.parametrize(
        ("environment", "devices", "nodes"), [(FABRIC, "4", "2"), (TORCHRUN, "4", "2"), (SRUN, "2", "2"), ({}, "auto", "1")]
    )
    def test_nothing_is_said_twice(self, environment: dict[str, str], devices: str, nodes: str) -> None:
        found = self.settings(environment)
        assert (found["devices"], found["num_nodes"]) == (devices, nodes)
        assert found["accelerator"] == environment.get("LT_ACCELERATOR", "auto")

    def test_the_same_in_other_words_is_no_conflict(self) -> None:
        found = self.settings(FABRIC, devices="4,5,6,7", num_nodes=2, precision="32-true", accelerator="auto")
        assert (found["devices"], found["accelerator"]) == ("4,5,6,7", "cpu")
        assert self.settings({**FABRIC, "LT_DEVICES": "auto"})["devices"] == "4"

    @pytest.mark.parametrize(
        ("environment", "said", "words"),
        [
            (FABRIC, {"devices": "3"}, ("trainer.devices", "LT_DEVICES=4", "'3'")),
            (FABRIC, {"accelerator": "gpu"}, ("trainer.accelerator", "LT_ACCELERATOR=cpu", "'gpu'")),
            (FABRIC, {"precision": "bf16-mixed"}, ("trainer.precision", "LT_PRECISION=32", "'bf16-mixed'")),
            ({**FABRIC, "LT_STRATEGY": "ddp"}, {"strategy": "fsdp2"}, ("trainer.strategy", "LT_STRATEGY=ddp", "'fsdp2'")),
            (TORCHRUN, {"num_nodes": 3}, ("trainer.num_nodes", "GROUP_WORLD_SIZE=2", "3")),
            (SRUN, {"devices": "8"}, ("trainer.devices", "SLURM_NTASKS_PER_NODE=2", "'8'")),
        ],
    )
    def test_a_conflict_names_both(self, environment: dict[str, str], said: dict[str, Any], words: tuple[str, ...]) -> None:
        with pytest.raises(ConfigError) as refused:
            self.settings(environment, **said)
        assert all(word in str(refused.value) for word in words)

    def test_nodes_without_a_launcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match=r"trainer\.num_nodes must be 1 .*found 2.*fabric run"):
            check_nodes(self.settings({}, num_nodes=2))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        check_nodes(self.settings({}, num_nodes=2))

    def test_how_many_processes_are_wanted(self) -> None:
        assert [wanted(self.settings({}, accelerator="cpu", devices=d)) for d in ("2", "0,3,5", "auto", None)] == [2, 3, 1, 1]

    def test_a_study_has_one_number_of_devices(self) -> None:
        with pytest.raises(ConfigError, match=r"trainer\.devices must be the same .*1 and 2"):
            start_processes([TrainerConfig(accelerator="cpu", devices=d) for d in ("1", "2")], ["run"])

    def test_one_process_starts_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        start_processes([TrainerConfig(accelerator="cpu")], ["run"])
        for name, value in TORCHRUN.items():
            monkeypatch.setenv(name, value)
        start_processes([TrainerConfig(accelerator="cpu", devices="4")], ["run"])


def child(rank: int, size: int, nodes: int, port: int, folder: Path, body: Callable[[int, Path], Any]) -> None:
    local = size // nodes
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank % local), "LOCAL_WORLD_SIZE": str(local),
        "NODE_RANK": str(rank // local), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        said = {"value": body(rank, folder)}
    except ElsewhereError as error:
        said = {"elsewhere": str(error), "told": error.told}
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    (folder / f"{rank}.json").write_text(json.dumps(said | {"at": time.monotonic(), "broken": Processes.broken()}))


def run(body: Callable[[int, Path], Any], folder: Path, size: int = 2, nodes: int = 1) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("fork")
    port = free_port()
    ranks = [context.Process(target=child, args=(rank, size, nodes, port, folder, body)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
    assert all(rank.exitcode is not None for rank in ranks)
    files = [folder / f"{rank}.json" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files]


def in_order(rank: int, folder: Path) -> Any:
    """Everything that a run does with the others, twice."""
    decisions = []
    for number in range(2):
        with Processes(30) as all_of_us:
            decisions.append(all_of_us.decide(lambda number=number: ["new", number] if rank == 0 else 1 / 0))

            def build() -> None:
                with (folder / "order.txt").open("a") as file:
                    file.write(f"{rank} ")
                time.sleep(0.1 if rank == 0 else 0)

            all_of_us.in_turn(build)
            all_of_us.together(lambda: (folder / f"seen{rank}").touch())
            assert all((folder / f"seen{other}").exists() for other in range(4))
    return decisions


def test_the_first_process_decides_and_goes_first_then_the_nodes_then_the_rest(tmp_path: Path) -> None:
    said = run(in_order, tmp_path, size=4, nodes=2)
    assert [one.get("value") for one in said] == [[["new", 0], ["new", 1]]] * 4, said
    order = [int(rank) for rank in (tmp_path / "order.txt").read_text().split()]
    for turn in (order[:4], order[4:]):
        assert turn[0] == 0
        assert turn.index(2) < turn.index(3)


def fails_deciding(rank: int, folder: Path) -> Any:
    with Processes(30) as all_of_us:
        all_of_us.decide(lambda: (_ for _ in ()).throw(RunError("the folder is taken.")))


def fails_preparing(rank: int, folder: Path) -> Any:
    def build() -> None:
        if rank == 1:
            raise RunError("no memory.")

    with Processes(30) as all_of_us:
        all_of_us.in_turn(build)
        all_of_us.together(lambda: None)


@pytest.mark.parametrize(("body", "culprit", "reason"), [(fails_deciding, 0, "the folder is taken."), (fails_preparing, 1, "no memory.")])
def test_a_failure_is_one_for_all_at_once_and_said_once(body: Any, culprit: int, reason: str, tmp_path: Path) -> None:
    said = run(body, tmp_path)
    assert said[culprit]["error"] == f"RunError: {reason}"
    other = said[1 - culprit]
    assert (other["elsewhere"], other["told"]) == (f"process {culprit}: {reason}", True)
    assert abs(said[0]["at"] - said[1]["at"]) < 5
    assert not any(one["broken"] for one in said)


def test_on_another_node_the_reason_is_said_once_more(tmp_path: Path) -> None:
    said = run(fails_deciding, tmp_path, size=4, nodes=2)
    assert [one.get("told") for one in said] == [None, True, False, True]


def goes_on(rank: int, folder: Path) -> Any:
    """A run that fails for all is followed by one that works."""
    for number in range(2):
        try:
            with Processes(30) as all_of_us:
                all_of_us.decide(lambda number=number: number if number else (_ for _ in ()).throw(RunError("taken.")))
        except RunError as error:
            first = str(error)
    return first


def test_a_study_goes_on_after_a_failure_that_all_know_of(tmp_path: Path) -> None:
    assert [one["value"] for one in run(goes_on, tmp_path)] == ["taken.", "process 0: taken."]


def diverges(rank: int, folder: Path) -> Any:
    with pytest.raises(RunError, match="in training"), Processes(30):
        raise RunError("in training")
    with Processes(30):
        pass


def test_no_run_after_one_that_broke_off(tmp_path: Path) -> None:
    said = run(diverges, tmp_path)
    assert all("must be started anew" in one["error"] and one["broken"] for one in said)


def hangs(rank: int, folder: Path) -> Any:
    def until_the_other_gives_up() -> None:
        while rank == 0 and not (folder / "1.json").exists():
            time.sleep(0.05)

    with Processes(5) as all_of_us:
        all_of_us.in_turn(until_the_other_gives_up)
        all_of_us.together(lambda: None)


def test_the_time_limit(tmp_path: Path) -> None:
    said = run(hangs, tmp_path)
    assert "Process 0 must be ready within trainer.start_timeout (5 s)" in said[1]["error"]
    assert said[0]["elsewhere"] == f"process 1: {said[1]['error'].removeprefix('RunError: ')}"


def is_killed(rank: int, folder: Path) -> Any:
    with Processes(60) as all_of_us:
        all_of_us.in_turn(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_first_process_that_is_killed(tmp_path: Path) -> None:
    said = run(is_killed, tmp_path)
    assert said[0] == {}
    assert "The first process must stay within reach at 127.0.0.1:" in said[1]["error"]


def falls_silent(rank: int, folder: Path) -> Any:
    meeting.SILENCE_S, meeting.BEAT_S = 1.0, 1e9 if rank else 0.2
    with Processes(60) as all_of_us:
        all_of_us.decide(lambda: None)
        all_of_us.together(lambda: time.sleep(3 if rank else 0))


def test_a_process_without_a_sign_of_life(tmp_path: Path) -> None:
    said = run(falls_silent, tmp_path)
    assert "Process 1 must give a sign of life" in said[0]["error"]


def never_comes(rank: int, folder: Path) -> Any:
    if rank == 0:
        with Processes(1):
            pass


def test_a_process_that_never_comes(tmp_path: Path) -> None:
    said = run(never_comes, tmp_path)
    assert "All 2 processes must come together at 127.0.0.1:" in said[0]["error"]


def test_processes_that_lightning_starts_skip_what_is_done_and_know_what_was_decided(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PREPARED, "{}")
    with Processes(1) as first:
        assert first.decide(lambda: ["new", None]) == ["new", None]
        first.announce(tmp_path / "b")
    for name, value in LIGHTNING.items():
        monkeypatch.setenv(name, value)
    with Processes(1) as late:
        assert late.behind(tmp_path / "a")
        assert not late.behind(tmp_path / "b")
        assert late.decide(lambda: 1 / 0) == ["new", None]
