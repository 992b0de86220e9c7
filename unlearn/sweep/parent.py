"""The MLflow run of a study, whose children are the runs of its trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.config.fingerprint import flatten
from unlearn.tracking.files import alone

if TYPE_CHECKING:
    import optuna

    from unlearn.config.schema import TrackingConfig
    from unlearn.config.sweep import SweepSpec
    from unlearn.sweep.outcome import SweepOutcome

PARENT = "mlflow_run_id"
OF_WORKERS = ("storage", "heartbeat", "patience")
"""Settings that say where workers meet, not what is searched."""


def parent_run(spec: SweepSpec, study: optuna.Study, tracking: TrackingConfig, folder: Path) -> str | None:
    """Id of the study's MLflow run, made where there is none; None where tracking is off or the store is away."""
    from unlearn.tracking.mlflow import make_mlflow_logger

    if not tracking.enabled:
        return None
    with alone(folder / PARENT):
        kept = study.user_attrs.get(PARENT)
        if kept:
            return str(kept)
        settings = {key: value for key, value in flatten(spec.settings).items() if key not in OF_WORKERS}
        tracker = make_mlflow_logger(tracking, spec.name, settings, {"sweep": spec.name, "kind": "sweep"})
        found = None if tracker is None else tracker.run_id
        if found:
            study.set_user_attr(PARENT, found)
        return found


def close_parent(study: optuna.Study, tracking: TrackingConfig, outcome: SweepOutcome, files: list[Path]) -> None:
    """Give the study's MLflow run the best values (``best/<objective>``) and settings (tags ``best.<key>``), and ``files``.

    It ends when no trial is running or waiting any more.
    """
    from unlearn.tracking.mlflow import make_mlflow_logger

    kept = study.user_attrs.get(PARENT)
    tracker = make_mlflow_logger(tracking, outcome.name, {}, run_id=kept) if kept and tracking.enabled else None
    if tracker is None or not tracker.reached:
        return
    done = outcome.done
    if outcome.best is not None:
        values = dict(zip(outcome.objectives, outcome.best.values, strict=True))
        tracker.log_metrics({**{f"best/{key}": value for key, value in values.items()}, "trials": done}, step=done)
        for key, value in {"trial": outcome.best.number, **outcome.best.params}.items():
            tracker.experiment.set_tag(kept, f"best.{key}", str(value))
    tracker.log_artifacts(files)
    if done >= outcome.wanted:
        tracker.finalize("finished")
    else:
        tracker.flush(force=True)
