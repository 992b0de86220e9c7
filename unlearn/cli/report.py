"""Writing a report, and keeping it with the MLflow run of its study."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.cli.console import note
from unlearn.tracking.reader import RunRecord

if TYPE_CHECKING:
    from unlearn.config.schema import TrackingConfig


def publish(records: Sequence[RunRecord], out: Path, ledger: Path | None = None) -> None:
    """Write the report of ``records`` to ``out`` (``unlearn.report.write_report``), say where it is, and add it to MLflow.

    It goes to the MLflow run of the study that all runs lie in, where they have one. With the ``ledger`` of a comparison it shows that as
    well, and may do without the runs.
    """
    from unlearn.report import write_report
    from unlearn.report.sheets import read_summary
    from unlearn.report.write import figures_of

    files = write_report(records, out, None if ledger is None else read_summary(ledger))
    figures = figures_of(files[0])
    drawn = sorted(figures.glob("*")) if figures.is_dir() else []
    note(f"report: {', '.join(map(str, files))}" + (f"; figures: {figures}" if drawn else ""))
    if not records:
        return
    folder, tracking = _study_of(records), _tracking_of(records[0])
    if folder is None or tracking is None:
        return
    from unlearn.tracking.study import add_to_study

    if add_to_study(tracking, folder, files, [file for file in drawn if file.suffix == ".png"]):
        note(f"kept in MLflow with the run {folder.name}")


def _study_of(records: Sequence[RunRecord]) -> Path | None:
    """The study's folder that has an MLflow run and holds every run; None without one."""
    first = records[0].path.resolve()
    for folder in first.parents:
        if (folder / "mlflow.json").is_file():
            return folder if all(record.path.resolve().is_relative_to(folder) for record in records) else None
    return None


def _tracking_of(record: RunRecord) -> TrackingConfig | None:
    """How the run was tracked; None where its configuration does not say."""
    from unlearn.config.schema import TrackingConfig
    from unlearn.errors import ConfigError

    section = record.config.get("tracking")
    known = {field.name for field in dataclasses.fields(TrackingConfig)}
    try:
        return TrackingConfig(**{key: value for key, value in section.items() if key in known}) if isinstance(section, dict) else None
    except ConfigError:
        return None
