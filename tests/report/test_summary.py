"""Means and intervals over seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.fake_runs import write_run
from unlearn.report.columns import lines_of
from unlearn.report.summary import groups_of, marks_of, plain_summary, summarise, summary_markdown, summary_table
from unlearn.report.words import verdicts
from unlearn.tracking.reader import read_run
from unlearn.tracking.rundir import RunDirectory


def seeds(folder: Path) -> list:
    records = []
    for seed, accuracy in enumerate((0.0, 0.1, 0.5)):
        path = write_run(folder, f"study{seed}", "npo")
        run = RunDirectory.open(path)
        run.write_config(
            run.config_path.read_text().replace("seed: 0", f"seed: {seed}").replace(f"study{seed}/npo", f"study/npo/seed{seed}")
        )
        run.write_results({"forget/accuracy": accuracy})
        manifest = json.loads(run.manifest_path.read_text()) | {"name": f"study/npo/seed{seed}", "intervention": True}
        run.manifest_path.write_text(json.dumps(manifest))
        records.append(read_run(path))
    return [*records, read_run(write_run(folder, "study", "rmu"))]


def test_runs_that_differ_in_their_seed_are_one_line(tmp_path: Path) -> None:
    groups = groups_of(seeds(tmp_path))
    assert {label: len(group) for label, group in groups.items()} == {"npo": 3, "rmu": 1}


def test_means_and_intervals(tmp_path: Path) -> None:
    summary = summarise(seeds(tmp_path))
    entry = summary["npo"]["forget/accuracy"]
    assert entry["mean"] == pytest.approx(0.2)
    assert (entry["ci_low"], entry["ci_high"], entry["n"]) == (0.0, 0.5, 3)
    assert not any(key.endswith("ci_low") for key in summary["npo"])
    alone = plain_summary(summary)["rmu"]["forget/accuracy"]
    assert alone == {"mean": 0.0, "ci_low": None, "ci_high": None, "n": 1}


def test_tables_show_the_interval_and_the_mark(tmp_path: Path) -> None:
    records = seeds(tmp_path)
    summary, marks = summarise(records), marks_of(records)
    assert marks == {"npo": "inference only", "rmu": ""}
    assert "| npo (inference only) | 0.20 (0.00-0.50) |" in summary_markdown(summary, marks)
    console = Console(width=90, record=True)
    console.print(summary_table(summary, marks))
    text = console.export_text()
    assert "inference only" in text
    assert "0.00-" in text
    assert [line.split()[0] for line in text.splitlines() if line.strip().startswith("0.50")] == ["0.50"]


def test_an_intervention_is_called_one_in_table_and_verdict(tmp_path: Path) -> None:
    path = write_run(tmp_path, "study", "npo")
    plain = read_run(path)
    manifest = RunDirectory.open(path).manifest_path
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"intervention": True}))
    acting = read_run(path)
    assert lines_of([acting])[0].method.endswith("(inference only)")
    assert "inference only" not in lines_of([plain])[0].method
    assert "nothing in the weights changed" in verdicts([acting])[0].sentence
    assert "weights" not in verdicts([plain])[0].sentence
