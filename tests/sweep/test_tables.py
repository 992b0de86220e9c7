"""What the terminal shows of a study."""

from __future__ import annotations

import doctest
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from unlearn.cli import main
from unlearn.sweep import tables, workers
from unlearn.sweep.outcome import SweepOutcome, TrialRecord
from unlearn.sweep.tables import MOST, line, live, ranked, settings, trial_table
from unlearn.sweep.workers import Worker, environment, status_of


def trial(number: int, value: float | None, state: str = "finished", **more: object) -> TrialRecord:
    values = () if value is None else (value,)
    return TrialRecord(number=number, state=state, params={"optim.lr": 10.0**-number}, values=values, **more)  # type: ignore[arg-type]


def outcome(*trials: TrialRecord, best: int | None = None, wanted: int = 40) -> SweepOutcome:
    chosen = next((t for t in trials if t.number == best), None)
    return SweepOutcome(
        name="s", folder=Path("runs/s"), objectives=("forget/accuracy",), directions=("minimize",), wanted=wanted, trials=trials,
        front=() if chosen is None else (chosen,), best=chosen,
    )  # fmt: skip


def text(shown: object, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


@pytest.mark.parametrize("module", [tables, workers], ids=lambda m: m.__name__)
def test_doctests(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted
    assert not result.failed


def test_the_live_table_says_how_far_it_is_and_shows_the_best_and_the_latest() -> None:
    trials = [trial(i, 0.5 - 0.01 * i) for i in range(30)]
    trials[2] = trial(2, 0.001)
    trials += [trial(30, None, "pruned"), trial(31, None, "failed", reason="no"), trial(32, None, "running", attempts=2)]
    found = text(live(outcome(*trials, best=2)))
    assert "s: 30 finished, 1 running, 1 pruned, 1 failed, of 40" in found
    assert "best: trial 2, forget/accuracy 0.001" in found
    rows = [row.split() for row in found.splitlines() if "finished" in row or "running" in row or "pruned" in row]
    assert any(row[:3] == ["*", "2", "finished"] for row in rows)
    assert any(row[:4] == ["32", "running", "(2", "times)"] for row in rows)
    assert sum(row[0].lstrip("*").isdigit() or row[0] == "*" for row in rows) <= MOST


def test_trials_outside_the_constraints_are_no_candidates() -> None:
    trials = [trial(0, 0.1, feasible=False), trial(1, 0.3), trial(2, 0.2)]
    found = outcome(*trials, best=2, wanted=3)
    assert [t.number for t in ranked(found)] == [2, 1]
    assert "1 outside the constraints" in text(live(found))
    assert line(found, trials[0]) == "trial 0 finished: outside the constraints; forget/accuracy 0.1 (optim.lr 1)"


def test_a_failed_trial_says_why_and_a_repeated_one_where_its_values_come_from() -> None:
    found = outcome(trial(0, 0.25), trial(1, 0.25, same_as=0), trial(2, None, "failed", reason="the loss must be finite;\nfound nan"))
    assert line(found, found.trials[2]) == "trial 2 failed: the loss must be finite; (optim.lr 0.01)"
    assert line(found, found.trials[1]) == "trial 1 finished as trial 0: forget/accuracy 0.25 (optim.lr 0.1)"
    assert "finished as 0" in text(trial_table(found, found.trials))


def test_workers_share_gpus_and_cores_and_are_no_ranks_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(workers, "gpus", lambda: [Path(f"/dev/nvidia{i}") for i in range(2)])
    given = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "PATH": "p"}
    found = [environment(given, number, 4) for number in range(4)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["0", "1", "0", "1"]
    assert {env["OMP_NUM_THREADS"] for env in found} == {"2"}
    assert not {"SLURM_PROCID", "SLURM_NTASKS"} & found[0].keys()
    assert environment({"CUDA_VISIBLE_DEVICES": ""}, 0, 1)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_status_of_a_team_is_that_of_its_worst() -> None:
    def team(*codes: int) -> int:
        return status_of([Worker(process=type("P", (), {"poll": lambda self, code=code: code})(), log=Path("x")) for code in codes])

    assert [team(0, 0), team(0, -9), team(0, 75), team(130, 0), team(75, 2, 130)] == [0, 0, 75, 130, 2]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ending:
        main(["sweep", *words])
    said = capsys.readouterr()
    return int(ending.value.code or 0), said.out, said.err


SMALL = """
sweep: small
base: {data: {source: world}, method: {name: npo}}
search:
  optim.lr: {low: 1.0e-5, high: 1.0e-3, log: true}
  method.beta: {low: 0.1, high: 0.5, step: 0.1}
objectives: {latent/c2st_auc: {near: 0.5}}
constraints: {retain/accuracy: {low: 0.9}}
"""


def test_a_dry_run_checks_and_tells_without_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    code, out, err = call(capsys, "small.yaml", "--dry-run", "--trials", "7")
    assert code == 0
    assert "1e-05 to 0.001, logarithmic" in out
    assert "0.1 to 0.5, in steps of 0.1" in out
    assert "|latent/c2st_auc - 0.5|" in out
    assert ">= 0.9" in out
    assert "7 trials by tpe, kept in runs/small" in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "expected a sweep file"),
        (("small.yaml", "trials=0"), "trials must be >= 1; found 0."),
        (("small.yaml", "optim.lrr=1"), "optim.lrr is not a known key. Did you mean 'optim.lr'?"),
        (("small.yaml", "trainer.devices=2"), "trainer.devices must be left out of a sweep"),
        (("small.yaml", "--status"), "--status needs a study that was begun; found none of the name 'small' in journal."),
        (("smal.yaml",), "smal.yaml: there is no such file; expected a YAML file. Did you mean 'small.yaml'?"),
    ],
)
def test_bad_commands_end_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    code, _, err = call(capsys, *words)
    assert code == 2
    assert sentence in err
    assert err.count("error:") == 1
    assert not Path("runs").exists()


def test_heads_and_numbers_are_not_broken_where_nobody_reads_a_break() -> None:
    """Nine columns do not fit: settings share one, and the distance to a number stands for the number."""
    few = replace(outcome(trial(0, 0.25), wanted=1), objectives=("|latent/c2st_auc - 0.5|",))
    heads = [line.split() for line in text(trial_table(few, few.trials)).splitlines()[1:4]]
    assert heads == [["|latent/"], ["c2st_auc"], ["trial", "state", "-", "0.5|", "optim.lr", "s"]]
    params = {"optim.lr": 0.000284153, "method.position": "answer_start", **{f"method.weight_{i}": 1.5 for i in range(6)}}
    wide = replace(few.trials[0], params=params, results={"latent/c2st_auc": 0.75, "retain/accuracy_unseen": 0.9})
    shown = text(trial_table(few, [wide]), width=80)
    assert "lr=0.000284," in shown
    assert "position=answer_start," in shown
    assert "accuracy_" in shown
    assert "0.75" not in shown


def test_settings_of_one_name_in_two_sections_keep_the_sections() -> None:
    one = replace(outcome(trial(0, 0.25), wanted=1).trials[0], params={"optim.lr": 0.1, "method.lr": 0.2, "method.beta": 3})
    assert settings(one) == "optim.lr=0.1, method.lr=0.2, beta=3"
