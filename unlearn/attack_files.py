"""What attacks leave behind: ``attacks/<name>.json`` beside a run's results, and their keys in its ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.fingerprint import plain, to_yaml
from unlearn.errors import RunError
from unlearn.tracking.files import dump_json, read_json, write_atomic
from unlearn.tracking.manifest import update_manifest, write_manifest
from unlearn.tracking.rundir import RunDirectory, is_run

if TYPE_CHECKING:
    from unlearn.config.schema import RunConfig
    from unlearn.subject import Subject

KIND = "attacks"
"""``kind`` in the manifest of the folder of an attacked model that is no run."""
SKIPPED = "skipped"
FOLDER = "attacks"


def folder_of(subject: Subject, out: Path | None) -> Path:
    """Where the results go: the run itself, else ``out``, else ``attacks/<model>``.

    Raises:
        RunError: ``out`` is given for a run.
    """
    if subject.run is not None:
        if out is not None:
            raise RunError(f"--out must be left out for a run, whose folder takes the results; found {out}.")
        return subject.run.path
    path = Path(subject.name)
    name = path.resolve().name if path.is_dir() else subject.name.replace("/", "--")
    return Path("attacks") / name if out is None else out if out.name else out.resolve()


def record_path(run: RunDirectory, name: str) -> Path:
    """File of one attack."""
    return run.path / FOLDER / f"{name}.json"


def kept(run: RunDirectory, name: str, key: str, *, gold: bool) -> bool:
    """Whether this very attack was made before (``gold``: on the gold model too); one that lacked something is tried again."""
    record = read_json(record_path(run, name))
    return record.get("fingerprint") == key and SKIPPED not in record and (not gold or "gold" in record)


def keep(run: RunDirectory, name: str, record: Mapping[str, Any]) -> None:
    """Write what an attack found, and put its results in the place of those that an earlier one of its name left."""
    path = record_path(run, name)
    old = read_json(path).get("results", {})
    path.parent.mkdir(exist_ok=True)
    results = {key: value for key, value in read_json(run.results_path).items() if key not in old}
    write_atomic(run.results_path, dump_json(dict(sorted({**results, **record.get("results", {})}.items()))) + "\n")
    write_atomic(path, dump_json(dict(record)) + "\n")


def track(run: RunDirectory, config: RunConfig, names: Sequence[str]) -> None:
    """Add the results of the attacks ``names``, and their figures, to the run's MLflow run, where it has one.

    Attacks made again are logged at a later step, so that the newest value is the one MLflow shows.
    """
    from unlearn.tracking.mlflow import make_mlflow_logger

    manifest = read_json(run.manifest_path)
    kept_id = manifest.get("mlflow_run_id")
    if not names or not kept_id or not config.tracking.enabled:
        return
    records = [read_json(record_path(run, name)).get("results", {}) for name in names]
    numbers = {key: float(v) for record in records for key, v in record.items() if isinstance(v, int | float)}
    rounds = int(manifest.get("attack_rounds", 0))
    tracker = make_mlflow_logger(config.tracking, config.name, {}, run_id=str(kept_id))
    if tracker is None or not numbers:
        return
    tracker.log_metrics(numbers, step=config.optim.steps + rounds if rounds else 0)  # MLflow draws what is at step 0 only as bars
    tracker.log_artifacts(sorted(path for name in names for path in run.plots.glob(f"attack_{name}.*")), "plots")
    tracker.finalize("success")
    update_manifest(run, {"attack_rounds": rounds + 1})


def claim(folder: Path, config: RunConfig, facts: Mapping[str, Any]) -> RunDirectory:
    """The folder of an attacked model, made where it is not there.

    Raises:
        RunError: it holds something else.
    """
    found = read_json(folder / "manifest.json")
    if is_run(folder):
        if found.get("kind") != KIND or found.get("subject") != facts["subject"]:
            what = f"attacks on {found.get('subject')}" if found.get("kind") == KIND else "a run"
            raise RunError(f"--out must be a new folder, or hold attacks on the same model; found {what} in {folder}.")
        run = RunDirectory(folder)
    else:
        run = RunDirectory.create(folder.parent, folder.name)
    write_manifest(run, config, {"kind": KIND, **facts})
    run.write_config(to_yaml({key: value for key, value in plain(config).items() if key not in ("optim", "tracking")}))
    run.set_status("finished")
    return run
