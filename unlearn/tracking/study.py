"""The MLflow run of a study: parent of the runs in its folder, and the place of its report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.tracking.files import alone, dump_json, read_json, write_atomic
from unlearn.tracking.mlflow import MLflowRunLogger, make_mlflow_logger
from unlearn.tracking.store import public_uri

if TYPE_CHECKING:
    from unlearn.config.schema import RunConfig, TrackingConfig

FILE = "mlflow.json"
"""File in a study's folder: {uri, experiment, run_id} of its MLflow run."""
PARENT = "mlflow.parentRunId"
"""Tag by which MLflow's UI puts runs below another."""


def study_name(run_name: str) -> str:
    """First part of a run's name, empty for a run that belongs to no study.

    >>> study_name("quickstart/npo/seed0"), study_name("alone")
    ('quickstart', '')
    """
    study, slash, _ = run_name.partition("/")
    return study if slash else ""


def short_name(run_name: str) -> str:
    """A run's name below its study.

    >>> short_name("quickstart/npo/seed0"), short_name("alone")
    ('npo/seed0', 'alone')
    """
    return run_name.removeprefix(f"{study_name(run_name)}/")


def naming(config: RunConfig, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Tags by which runs are found, grouped and traced in MLflow's pages; ``manifest`` is the run's."""
    commit = str((manifest["git"] or {}).get("commit", ""))
    return {
        "kind": "run",
        "study": study_name(config.name),
        "source": config.data.source,
        "method": config.method.name,
        "seed": str(config.seed),
        "fingerprint": manifest["fingerprint"],
        "git_commit": commit,
        "mlflow.source.git.commit": commit,
        "model": str(config.model.path or config.data.source),
        "model_fingerprint": str(manifest["model_fingerprint"]),
        "tokenizer": str(config.model.tokenizer or config.model.path or config.data.source),
        "revision": str(config.model.revision or ""),
        "global_batch": json.dumps(manifest["batch"]),
        **{f"version.{name}": version for name, version in manifest["versions"].items()},
    }


def join_study(tracker: MLflowRunLogger, tracking: TrackingConfig, out: str | Path, name: str) -> None:
    """Make the MLflow run of ``tracker`` a child of its study's, which is made where there is none.

    Nothing happens for a run that belongs to no study, or while the store is away.
    """
    study = study_name(name)
    if not study or not tracker.reached:
        return
    folder = Path(out) / study
    with alone(folder / FILE):
        parent = _open(tracking, folder)
        if parent is not None:
            parent.finalize("finished")
            _note(parent, tracking, folder)
    if parent is not None and parent.run_id:
        tracker.tag(PARENT, parent.run_id)


def add_to_study(tracking: TrackingConfig, folder: Path, files: Iterable[Path], figures: Iterable[Path]) -> bool:
    """Keep a report and its figures with the MLflow run of the study in ``folder``; whether there is one and it took them."""
    if not tracking.enabled or not read_json(folder / FILE):
        return False
    with alone(folder / FILE):
        parent = _open(tracking, folder)
        if parent is None:
            return False
        parent.log_artifacts(files)
        parent.log_artifacts(figures, "figures")
        parent.finalize("finished")
        _note(parent, tracking, folder)
        return parent.reached


def _open(tracking: TrackingConfig, folder: Path) -> MLflowRunLogger | None:
    """The study's MLflow run set going: the one in ``FILE`` where the store has it, else a new one; None where the store is away."""
    kept = read_json(folder / FILE)
    name = folder.name
    parent = make_mlflow_logger(tracking, name, {}, {"kind": "study", "study": name}, run_id=kept.get("run_id"))
    return parent if parent is not None and parent.reached else None


def _note(parent: MLflowRunLogger, tracking: TrackingConfig, folder: Path) -> None:
    found = {"uri": public_uri(parent.uri), "experiment": tracking.experiment, "run_id": parent.run_id}
    if read_json(folder / FILE) != found:
        write_atomic(folder / FILE, dump_json(found) + "\n")
