"""One run in one process, and the same in two processes of every launcher, on one node and on two."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.distributed.launchers import (
    Launch,
    astray,
    difference,
    environment,
    fake_slurm,
    launch,
    mlflow_runs,
    record_of,
    run_alone,
    small_sharded,
    two_nodes,
    write_config,
)
from tests.forks import free_port
from tests.lines import (
    LAUNCHED,
    README,
    ROOT,
    SCRIPT,
    SHARDED,
    fabric,
    fabric_node,
    launch_lines,
    plain,
    sbatch,
    torchrun,
)
from tests.loaded import loaded
from tests.mini import make_mini
from unlearn.tracking.reader import RunRecord, read_run

STEPS = 4


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = make_mini(tmp_path_factory.mktemp("mini"))
    return {
        **config,
        "optim": {"steps": STEPS, "lr": 1e-3},
        "path": write_config(Path(config["out"]).parent, {**config, "optim": {"steps": STEPS, "lr": 1e-3}}),
    }


@pytest.fixture(scope="module")
def alone(mini: dict[str, Any]) -> RunRecord:
    mini["whole"] = run_alone(mini["path"], Path(mini["out"]).parent, "name=alone", "tracking.enabled=false")
    return record_of(mini, "alone")


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """For launches whose processes need not be interpreters of their own, as those of test_torchrun, test_two_nodes and others are."""
    with loaded(environment(tmp_path_factory.mktemp("forks"))) as variable:
        yield variable


def check(mini: dict[str, Any], alone: RunRecord, done: Launch, name: str, *, nodes: int = 1) -> RunRecord:
    """The run is whole, and it is the one of one process."""
    assert set(done.codes) == {0}, done.output
    found = record_of(mini, name)
    assert found.status["state"] == "finished"
    assert found.manifest["processes"] == {**found.manifest["processes"], "count": 2, "nodes": nodes}
    assert difference(alone, found) < 1e-5
    runs = mlflow_runs(mini["tracking"]["uri"], name)
    assert [run.info.run_id for run in runs] == [found.manifest["mlflow_run_id"]]
    assert runs[0].info.status == "FINISHED"
    return found


def check_records(mini: dict[str, Any], done: Launch, *, nodes: int = 1) -> None:
    """Two processes have trained, each on its half of what one process is served; they are who Lightning takes them for."""
    assert [len(record) for record in done.records] == [STEPS, STEPS]
    for rank, record in enumerate(done.records):
        said = record[0]
        node, local_rank = (rank, 0) if nodes == 2 else (0, rank)
        assert (said["rank"], said["size"], said["node"], said["local_rank"]) == (rank, 2, node, local_rank)
        where = said["place"]
        assert (where["rank"], where["size"], where["node"], where["local_rank"], where["nodes"]) == (rank, 2, node, local_rank, nodes)
    assert len({record[0]["pid"] for record in done.records}) == 2
    halves = [[len(rows) for said in record for rows in said["rows"].values()] for record in done.records]
    assert halves[0] == halves[1] == [len(rows) // 2 for said in mini["whole"] for rows in said["rows"].values()]
    assert astray(done.records, mini["whole"]) == 0


@pytest.mark.slow
def test_fabric_run_makes_a_study(mini: dict[str, Any], alone: RunRecord, forks: dict[str, str], tmp_path: Path) -> None:
    """Two runs one after the other in the same processes, a cache that is empty at first, and one that is there already."""
    study = tmp_path / "study.yaml"
    common = yaml.safe_load(mini["path"].read_text())
    del common["name"]
    study.write_text(yaml.safe_dump({"study": "study", "common": common, "runs": {"before": None, "first": None, "again": None}}))
    shutil.copytree(alone.path, Path(mini["out"]) / "study" / "before")
    words = [str(study), f"cache={tmp_path / 'cache'}"]
    done = launch(tmp_path, [fabric(LAUNCHED, words)], **forks)
    assert set(done.codes) == {0}, done.output
    for name in ("study/first", "study/again"):
        check(mini, alone, done, name)
    assert [len(record) for record in done.records] == [2 * STEPS] * 2
    done.records = [record[:STEPS] for record in done.records]
    check_records(mini, done)
    assert done.output.count("study/before: finished before with the same configuration, kept") == 1


@pytest.mark.slow
def test_fabric_run_makes_the_study_of_sharded_models(mini: dict[str, Any], forks: dict[str, str], tmp_path: Path) -> None:
    """The line of experiments/sharded/README.md with its configuration, small; each process trains on half of the rows."""
    done = launch(tmp_path, [fabric(LAUNCHED, small_sharded(mini, f"out={tmp_path}"), SHARDED)], **forks)
    assert set(done.codes) == {0}, done.output
    names = list(yaml.safe_load((ROOT / "experiments" / "sharded" / "llama_8b.yaml").read_text())["runs"])
    for name in names:
        found = read_run(tmp_path / "sharded" / name)
        assert found.status["state"] == "finished"
        assert found.manifest["processes"]["count"] == 2
        assert [row["step"] for row in found.metrics if row["key"] == "train/loss"] == [0, 1, 2]
        assert found.config["trainer"]["strategy"] == "fsdp2"
        assert len(mlflow_runs(mini["tracking"]["uri"], f"sharded/{name}")) == 1
    for record in done.records:
        assert len(record) == 3 * len(names)
        assert {len(rows) for said in record for rows in said["rows"].values()} == {2}


@pytest.mark.parametrize("page", [README, SHARDED], ids=lambda page: page.parent.name)
def test_every_launch_line_of_a_page_is_one_that_is_run(page: Path) -> None:
    """``launch_lines`` finds them all; the ones below are started by the tests here or by experiments/reliability/launch.py."""
    words = ["x.yaml"]
    node = [fabric_node(number, "ADDRESS", 1, words, page) for number in (0, 1)]
    made = [plain(words, page), fabric(SCRIPT, words, page), torchrun(SCRIPT, words, page), sbatch(words, page), *node]
    assert all(words[0] in command for command in made)
    assert all("DIR" not in str(word) for command in made for word in command)
    found = [line for line in launch_lines(page) if "--dry-run" not in line]
    assert len(found) == (6 if page == README else 5)
    assert {line[0] for line in found} == {"unlearn", "fabric", "torchrun", "sbatch"}


@pytest.mark.slow
def test_torchrun(mini: dict[str, Any], alone: RunRecord, tmp_path: Path) -> None:
    done = launch(tmp_path, [torchrun(LAUNCHED, [str(mini["path"]), "name=torchrun"])])
    check(mini, alone, done, "torchrun")
    check_records(mini, done)


@pytest.mark.slow
def test_unlearn_run_starts_processes_itself(mini: dict[str, Any], alone: RunRecord, tmp_path: Path) -> None:
    done = launch(tmp_path, [plain([str(mini["path"]), "name=plain"])])
    check(mini, alone, done, "plain")
    assert "Traceback" not in done.output
    assert done.output.count("kept in") == 1


@pytest.mark.slow
def test_two_nodes(mini: dict[str, Any], alone: RunRecord, tmp_path: Path, record_property: Any) -> None:
    with two_nodes() as (kind, address, inside):
        record_property("nodes", kind)
        port, words = free_port(), [str(mini["path"]), "name=nodes"]
        done = launch(tmp_path, [[*inside[node], *fabric_node(node, address, port, words)] for node in (0, 1)])
    check(mini, alone, done, "nodes", nodes=2)
    check_records(mini, done, nodes=2)
    addresses = [record[0]["address"] for record in done.records]
    assert addresses == {"namespaces": ["10.77.0.1", "10.77.0.2"], "loopback": ["127.0.0.1"] * 2}[kind]


@pytest.mark.slow
def test_slurm_and_a_job_that_is_queued_again(mini: dict[str, Any], alone: RunRecord, forks: dict[str, str], tmp_path: Path) -> None:
    """A signal of the scheduler before step 2: saved, queued again, gone on with; the end is that of a run that was never stopped."""
    words = [str(mini["path"]), "name=slurm"]
    job = fake_slurm(tmp_path / "slurm", LAUNCHED) | forks
    stopped = launch(tmp_path / "stopped", [sbatch(words)], SIGNAL_AT="2", **job)
    assert stopped.codes == [75], stopped.output
    assert record_of(mini, "slurm").status["state"] == "killed"
    assert (tmp_path / "slurm" / "scontrol").read_text() == f"requeue {job['SLURM_JOB_ID']}\n"
    done = launch(tmp_path / "done", [sbatch(words)], **job)
    check(mini, alone, done, "slurm")
    done.records = [before + after for before, after in zip(stopped.records, done.records, strict=True)]
    check_records(mini, done)


@pytest.mark.slow
def test_a_first_process_that_fails_takes_all_along_and_says_why_once(
    mini: dict[str, Any], alone: RunRecord, forks: dict[str, str], tmp_path: Path
) -> None:
    words = [str(mini["path"]), "name=nowhere", "data.path=nowhere.jsonl"]
    done = launch(tmp_path / "srun", [sbatch(words)], **fake_slurm(tmp_path / "slurm", LAUNCHED), **forks)
    assert done.codes == [2], done.output
    assert done.output.count("nowhere.jsonl") == 1, done.output
    assert "Traceback" not in done.output
    assert record_of(mini, "nowhere").status["state"] == "failed"
    assert "nowhere.jsonl" in record_of(mini, "nowhere").status["reason"]
    done = launch(tmp_path / "torchrun", [torchrun(LAUNCHED, [str(mini["path"]), "name=alone", "optim.steps=3"])], **forks)
    assert done.codes == [1]
    assert done.output.count("found a run with another configuration") == 1, done.output


def test_the_batch_script_is_sound() -> None:
    script = ROOT / "experiments" / "slurm" / "run.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --signal=USR1@" in text


@pytest.mark.slow
def test_a_conflict_is_said_before_anything_starts(mini: dict[str, Any], tmp_path: Path) -> None:
    """As a process finds it that ``fabric run --devices 2`` has started."""
    words = [str(mini["path"]), "name=conflict", "trainer.devices=3"]
    done = launch(tmp_path, [[sys.executable, SCRIPT, *words]], LT_CLI_USED="1", LT_DEVICES="2", LT_NUM_NODES="1")
    assert done.codes == [2]
    assert done.output.count("trainer.devices must agree with the launcher (LT_DEVICES=2); found '3'") == 1
    assert not (Path(mini["out"]) / "conflict").exists()
