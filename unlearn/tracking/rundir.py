"""The folder of one run: what is in it, and the only code that writes there."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unlearn.config.secrets import hide_secrets
from unlearn.errors import RunError, did_you_mean
from unlearn.tracking.files import append_lines, dump_json, read_json, write_atomic
from unlearn.tracking.tensors import load_tensors, save_tensors

STATES: tuple[str, ...] = ("running", "finished", "failed", "killed", "stopped")
"""``stopped``: ended early on purpose (a collapsed model, for example); ``killed``: interrupted from outside."""

LONGEST = 255
"""Bytes that the name of a folder may have."""

CONFIG, MANIFEST, METRICS, SAMPLES, RESULTS, ENTITIES, STATUS, ACTIVATIONS, WEIGHTS = (
    "config.yaml",
    "manifest.json",
    "metrics.jsonl",
    "samples.jsonl",
    "results.json",
    "entities.json",
    "status",
    "activations.npz",
    "weights.safetensors",
)


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a run: it holds a status, or a configuration with a manifest or results."""
    if read_json(path / STATUS).get("state") in STATES:
        return True
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in (MANIFEST, RESULTS))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """One sentence for whatever the disk has against ``path``.

    Raises:
        RunError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} must be a file that can be written; found: {error.strerror or error}.") from error


def run_path(out: str | Path, name: str) -> Path:
    """``<out>/<name>``.

    Raises:
        RunError: ``name`` is empty, leads to ``out`` itself or out of it, or is none that a file system takes.
    """
    root = Path(out).resolve()
    try:
        path = (root / name).resolve()
        usable = name.isprintable() and max(len(part.encode()) for part in path.parts) <= LONGEST
    except (OSError, RuntimeError, ValueError):  # a circle of links, characters that no file name may have
        path, usable = root, False
    if not usable or not name.strip() or path == root or not path.is_relative_to(root):
        raise RunError(f"name must be a folder inside out ({str(out)!r}), such as 'npo' or 'study/npo'; found {name!r}.")
    return Path(out) / path.relative_to(root)


class RunDirectory:
    """``runs/<name>/`` with config.yaml, manifest.json, metrics.jsonl, samples.jsonl, results.json, status, checkpoints/ and plots/.

    Whole files are swapped in atomically; the two JSON-lines files grow by appended lines.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, out: str | Path, name: str, exist: str = "error") -> RunDirectory:
        """Make ``<out>/<name>`` with status ``running``.

        ``exist`` says what happens to a run already there: ``error``, or ``replace`` (it is deleted first). An empty folder is
        taken as it is; a folder that is no run is never deleted.

        Raises:
            RunError: the folder exists, ``name`` leaves ``out``, or the new run would lie inside another one.
        """
        if exist not in ("error", "replace"):
            raise RunError(f"exist must be one of error, replace; found {exist!r}.{did_you_mean(exist, ('error', 'replace'))}")
        path = run_path(out, name)
        for parent in path.parents[: len(path.relative_to(out).parts) - 1]:
            if is_run(parent):
                raise RunError(f"{path} must not lie inside another run; found the run {parent}. Take another name.")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            cls._make_room(path, exist)
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.checkpoints.mkdir()
            run.plots.mkdir()
        except FileExistsError:
            raise RunError(f"{path} must be a new folder; found that another process has just made it. Take another name.") from None
        except OSError as error:
            raise RunError(f"{path} must be a folder that can be made; found: {error.strerror or error}.") from None
        run.set_status("running")
        return run

    @staticmethod
    def _make_room(path: Path, exist: str) -> None:
        if not is_run(path):
            raise RunError(f"{path} must be a new folder; found one that holds something else than a run. Take another name.")
        if exist == "error":
            advice = f"Go on with it by --resume {path}, replace it by --force, or take another name."
            raise RunError(f"{path} must be a new folder; found a run. {advice}")
        shutil.rmtree(path)

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The run in an existing folder.

        Raises:
            RunError: there is no such folder, or it is no run.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunError(f"{folder} must be the folder of a run; found no such folder.")
        if not is_run(folder):
            raise RunError(f"{folder} must be the folder of a run; found neither a {STATUS} nor a {CONFIG} with a {MANIFEST} or {RESULTS}.")
        return cls(folder)

    @property
    def config_path(self) -> Path:
        """``config.yaml``."""
        return self.path / CONFIG

    @property
    def manifest_path(self) -> Path:
        """``manifest.json``."""
        return self.path / MANIFEST

    @property
    def metrics_path(self) -> Path:
        """``metrics.jsonl``: rows {step, stage, key, value}."""
        return self.path / METRICS

    @property
    def samples_path(self) -> Path:
        """``samples.jsonl``: rows {set, prompt, reference, before, after}."""
        return self.path / SAMPLES

    @property
    def results_path(self) -> Path:
        """``results.json``: flat, ``scope/name: number or text``."""
        return self.path / RESULTS

    @property
    def status_path(self) -> Path:
        """``status``: JSON {state, reason, updated}."""
        return self.path / STATUS

    @property
    def activations_path(self) -> Path:
        """``activations.npz``: known_ND, unknown_MD, target_before_KD, target_after_KD (float32)."""
        return self.path / ACTIVATIONS

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """Folder of figures."""
        return self.path / "plots"

    def artifacts(self) -> list[Path]:
        """The small files worth keeping in a tracking store, those that exist: everything but checkpoints and activations."""
        names = (CONFIG, MANIFEST, METRICS, SAMPLES, RESULTS, ENTITIES, STATUS)
        plots = sorted(p for p in self.plots.glob("*") if p.is_file()) if self.plots.is_dir() else []
        return [self.path / n for n in names if (self.path / n).is_file()] + plots

    def write_config(self, text: str) -> Path:
        """Write config.yaml."""
        with writing(self.config_path):
            return write_atomic(self.config_path, text)

    def write_results(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Merge ``results`` into results.json and return all of it; later values win.

        Raises:
            RunError: a value is neither a number nor a text, or the disk does not take them.
        """
        merged = {**read_json(self.results_path), **{key: scalar(key, value) for key, value in results.items()}}
        with writing(self.results_path):
            write_atomic(self.results_path, dump_json(dict(sorted(merged.items()))) + "\n")
        return merged

    def write_entities(self, means: Mapping[str, Mapping[str, float]]) -> None:
        """Write entities.json, ``{key: {entity: mean}}``: what tests that pair entities need."""
        path = self.path / ENTITIES
        with writing(path):
            write_atomic(path, dump_json({key: dict(found) for key, found in means.items()}) + "\n")

    def append_metrics(self, step: int, stage: str, metrics: Mapping[str, Any]) -> None:
        """Append one row {step, stage, key, value} for each metric."""
        rows = [{"step": int(step), "stage": stage, "key": k, "value": scalar(k, v)} for k, v in metrics.items()]
        with writing(self.metrics_path):
            append_lines(self.metrics_path, rows)

    def append_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows {set, prompt, reference, before, after}."""
        with writing(self.samples_path):
            append_lines(self.samples_path, rows)

    def write_activations(self, **arrays: Any) -> Path:
        """Write activations.npz, compressed, as float32 (``known_ND``, ``unknown_MD``, ``target_before_KD``, ``target_after_KD``)."""
        import numpy as np

        buffer = io.BytesIO()
        floats: dict[str, Any] = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
        np.savez_compressed(buffer, **floats)
        with writing(self.activations_path):
            return write_atomic(self.activations_path, buffer.getvalue())

    def write_weights(self, state: Mapping[str, Any]) -> Path:
        """Write the final trained weights (tensors by name, ``lm.`` or ``method.`` first) to weights.safetensors, with their checksum."""
        path = self.path / WEIGHTS
        with writing(path):
            return save_tensors(path, state)

    def read_weights(self) -> dict[str, Any]:
        """What ``write_weights`` wrote; empty where the run trained nothing.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / WEIGHTS
        try:
            return load_tensors(path) if path.is_file() else {}
        except (ValueError, OSError) as error:
            raise RunError(f"{path} must hold the run's final weights; found a damaged file ({error}).") from error

    def set_status(self, state: str, reason: str = "") -> None:
        """Write the status, passwords left out of ``reason``; on a full disk over the old one, whose room it has.

        Raises:
            RunError: ``state`` is not one of ``STATES``, or the disk does not take it.
        """
        if state not in STATES:
            raise RunError(f"status must be one of {', '.join(STATES)}; found {state!r}.{did_you_mean(state, STATES)}")
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        text = dump_json({"state": state, "reason": hide_secrets(reason), "updated": updated}) + "\n"
        with writing(self.status_path):
            try:
                write_atomic(self.status_path, text)
            except OSError:
                if not self.status_path.is_file():
                    raise
                with self.status_path.open("rb+") as file:  # not emptied first: the room might be gone
                    file.write(text.encode("utf-8"))
                    file.truncate()


def scalar(key: str, value: Any) -> int | float | str | None:
    """``value`` as a number or a text; truth values become 0 and 1, one-element arrays and tensors their element.

    Raises:
        RunError: it is something else.
    """
    if hasattr(value, "item") and not isinstance(value, str):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            raise RunError(f"{key} must be a number or a text; found {type(value).__name__} of shape {tuple(value.shape)}.") from None
    if isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, int | float | str):
        return value
    raise RunError(f"{key} must be a number or a text; found {type(value).__name__}.")
