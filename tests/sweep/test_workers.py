"""Several workers of one study, one of them killed in the middle; and storages that are damaged or away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy import event

from tests.forks import ended
from tests.scripts import module_of
from tests.sweep.studies import Formula, calls, die, once, slowly, sweep, worker
from unlearn.errors import ConfigError, RunError
from unlearn.sweep import engine, run_sweep, slots, trial
from unlearn.sweep.engine import folder_of, open_study
from unlearn.sweep.outcome import outcome_of
from unlearn.sweep.slots import SURPLUS, WORKER, current, fail_lost, plan
from unlearn.sweep.storage import HeartbeatJournal, open_storage
from unlearn.sweep.workers import Workers

TRIALS = 10


def team(folder: Path, storage: str, environment: dict[str, str] | None = None) -> None:
    """Four workers, of which the one that begins trial 3 is killed: exactly TRIALS trials are finished, and no other is begun twice."""
    spec = sweep(folder, storage=storage, trials=TRIALS)
    before = slowly(0.3, once(folder, 3, die))
    pids = [worker(spec, folder, before, folder / f"log_{i}", environment) for i in range(4)]
    codes = sorted(ended(pid) for pid in pids)
    assert codes == [-signal.SIGKILL, 0, 0, 0], [(folder / f"log_{i}").read_text()[-2000:] for i in range(4)]
    os.environ.update(environment or {})
    outcome = outcome_of(spec, open_study(spec, folder_of(spec)), folder)
    begun = sorted(call["trial"] for call in calls(folder))
    assert [t.state for t in outcome.trials] == ["finished"] * TRIALS
    assert begun == sorted([*range(TRIALS), 3])
    assert [t.attempts for t in outcome.trials] == [2 if t.number == 3 else 1 for t in outcome.trials]
    assert len({call["pid"] for call in calls(folder)}) >= 3
    lrs = [t.params["optim.lr"] for t in outcome.trials]
    assert len(set(lrs)) == TRIALS
    assert lrs == [t.params["optim.lr"] for t in alone(folder).trials]


def alone(folder: Path) -> engine.SweepOutcome:
    """The same study by one worker: random choices depend on the trial, not on who makes it."""
    (folder / "alone").mkdir()
    return run_sweep(sweep(folder / "alone", trials=TRIALS))


@pytest.fixture(autouse=True)
def formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "execute", Formula(tmp_path / "own_calls"))
    monkeypatch.setattr(engine, "draw", lambda study, outcome: [])
    (tmp_path / "own_calls").mkdir()


def test_four_workers_on_a_journal_file(tmp_path: Path) -> None:
    team(tmp_path, "journal")


def test_four_workers_on_sqlite(tmp_path: Path) -> None:
    team(tmp_path, f"sqlite:///{tmp_path}/study.db")


def test_a_waiting_trial_in_sqlite_goes_to_one_worker_only(tmp_path: Path) -> None:
    """The second worker asks when the first one has read that the trial waits, and has not yet said that it takes it."""
    spec = sweep(tmp_path, storage=f"sqlite:///{tmp_path}/study.db", trials=1)
    study = open_study(spec, folder_of(spec))
    plan(study, spec, 1)
    (waiting,) = study.get_trials()
    first, second = (open_storage(spec, folder_of(spec)) for _ in range(2))
    assert isinstance(first, RDBStorage)
    got: dict[str, bool] = {}
    late = Thread(target=lambda: got.update(second=second.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)))

    def between(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("UPDATE trials") and late.ident is None:
            late.start()
            late.join(1)  # it has to wait for this one; one that did not would be done by then

    event.listen(first.engine, "before_cursor_execute", between)
    got["first"] = first.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    late.join()
    assert got == {"first": True, "second": False}


@contextmanager
def database(folder: Path) -> Iterator[tuple[str, str]]:
    """A PostgreSQL server of its own; address and password."""
    module = module_of("docker/local_stack.py")
    with module.temporary() as place, module.postgres(Path(place), "only-for-this-test") as (address, version):
        assert version.startswith("PostgreSQL")
        yield address, "only-for-this-test"


@pytest.mark.slow
def test_four_workers_on_postgresql_which_takes_the_password_from_the_environment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database(tmp_path) as (address, password):
        monkeypatch.setenv("PGPASSWORD", password)
        team(tmp_path, address, {"PGPASSWORD": password})
        monkeypatch.setenv("PGPASSWORD", "wrong-password")
        with pytest.raises(RunError, match=r"storage must be a study's place that answers.*password authentication failed") as caught:
            run_sweep(sweep(tmp_path, storage=address, trials=TRIALS))
        assert "wrong-password" not in str(caught.value)
    assert password not in "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".yaml", ".json", ""))
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    with pytest.raises(RunError, match="which says: .*connection"):
        run_sweep(sweep(tmp_path, storage=address, trials=TRIALS))


def test_a_password_in_the_address_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"storage must be an address without a password.*PGPASSWORD") as caught:
        sweep(tmp_path, storage="postgresql://me:s3cret-word@db/study")
    assert "s3cret-word" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database, but long enough to be taken for one " * 30)
    with pytest.raises(RunError, match=r"storage must be a study's place that answers; found sqlite:///.*not a database"):
        run_sweep(sweep(tmp_path, storage=f"sqlite:///{tmp_path}/study.db"))


def test_a_torn_last_line_of_a_journal_is_cut_off(tmp_path: Path) -> None:
    spec = sweep(tmp_path, trials=2)
    run_sweep(spec)
    path = tmp_path / "study" / "study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"work')
    out = run_sweep(sweep(tmp_path, trials=3))
    assert [t.state for t in out.trials] == ["finished"] * 3
    assert path.read_bytes().startswith(whole + b'{"op_code"')
    assert all(line.endswith(b"}") for line in path.read_bytes().splitlines())
    assert list(JournalFileBackend(str(path)).read_logs(0))


def test_a_worker_on_another_machine_is_lost_when_it_gives_no_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = sweep(tmp_path, patience=60, heartbeat=10, trials=1)
    study = open_study(spec, folder_of(spec))
    plan(study, spec, 1)
    with pytest.warns(UserWarning, match="Heartbeat"):
        begun = study.ask()
    begun.set_user_attr(WORKER, {"machine": "elsewhere", "pid": os.getpid(), "started": 0.0})
    storage = study._storage
    assert isinstance(storage, HeartbeatJournal)
    storage.record_heartbeat(begun._trial_id)
    assert fail_lost(study, 60) == []
    old = time.time() - 61
    os.utime(storage.beats / str(begun._trial_id), (old, old))
    assert fail_lost(study, 60) == [0]
    plan(study, spec, 1)
    again = current(study.get_trials())[0]
    assert (again.state, slots.attempt_of(again)) == (TrialState.WAITING, 1)


def test_a_trial_taken_by_a_process_that_never_said_who_it_was_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = sweep(tmp_path, storage=f"sqlite:///{tmp_path}/study.db", trials=1)
    study = open_study(spec, folder_of(spec))
    plan(study, spec, 1)
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask()
    assert fail_lost(study, 60) == []
    now = time.time()
    monkeypatch.setattr(slots.time, "time", lambda: now + 61)
    assert fail_lost(study, 60) == [0]


def test_two_workers_may_give_up_the_same_trial_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one does between the first one's look at the trial and its word."""
    spec = sweep(tmp_path, storage=f"sqlite:///{tmp_path}/study.db", trials=1)
    first, second = (open_study(spec, folder_of(spec)) for _ in range(2))
    plan(first, spec, 1)
    with pytest.warns(UserWarning, match="Heartbeat"):
        begun = first.ask()
    begun.set_user_attr(WORKER, {**slots.identity(), "pid": 2**22 + 1})  # beyond the largest process id
    say, others = first._storage.set_trial_state_values, []

    def late(*of: Any, **what: Any) -> bool:
        others.extend(fail_lost(second, 60))
        return say(*of, **what)

    monkeypatch.setattr(first._storage, "set_trial_state_values", late)
    assert fail_lost(first, 60) == [0]
    assert others == [0]


def test_a_slot_that_was_queued_twice_is_made_once(tmp_path: Path) -> None:
    spec = sweep(tmp_path, trials=2)
    study = open_study(spec, folder_of(spec))
    for _ in range(3):
        study.enqueue_trial({}, user_attrs={slots.SLOT: 0})
    made = Formula(tmp_path)
    trial.execute = made  # type: ignore[assignment]
    out = run_sweep(spec)
    assert [call["trial"] for call in calls(tmp_path)] == [0, 1]
    assert [t.state for t in out.trials] == ["finished", "finished"]
    assert sum(bool(t.user_attrs.get(SURPLUS)) for t in open_study(spec, folder_of(spec)).trials) == 2


def test_workers_leave_when_their_starter_is_gone(tmp_path: Path) -> None:
    """The pipe that a worker reads ends with the process that holds its other end."""
    import subprocess
    import sys

    code = "import time, unlearn.sweep.workers as w\nw.leave_with_starter(0)\nprint('here', flush=True)\ntime.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"here\n"
    child.stdin.close()
    assert child.wait(500) == -signal.SIGTERM
    child.stdout.close()


def test_the_team_tells_what_its_workers_said(tmp_path: Path) -> None:
    team = Workers(["sweep", str(tmp_path / "nowhere.yaml"), "--as-worker"], tmp_path / "workers")
    team.start(0, 1)
    team.running[0].process.wait(600)
    (gone,) = team.look()
    assert gone.code == 2
    assert gone.said() == [f"{tmp_path}/nowhere.yaml: there is no such file; expected a YAML file."]
