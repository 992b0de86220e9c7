"""Reads run directories. Report tools need nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.errors import RunError
from unlearn.tracking.files import read_json, read_lines
from unlearn.tracking.rundir import CONFIG, RunDirectory, is_run


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run left behind; a piece that is missing is empty.

    ``results`` maps result keys to numbers (a few to texts, ``collapse/reason`` for example). ``metrics`` are tidy rows {step, stage,
    key, value} in the order of steps, one for each (stage, key, step). ``samples`` are rows {set, prompt, reference, before, after}.
    ``status`` is {state, reason, updated}. ``activations`` is the path of activations.npz, if there is one.
    """

    name: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    activations: Path | None = None

    @property
    def method(self) -> str:
        """Name of the method, or an empty string."""
        method = self.config.get("method")
        return str(method.get("name") or "") if isinstance(method, Mapping) else ""

    def number(self, key: str) -> float | None:
        """The result ``key`` as a number; None where it is missing, a text or not a number (nan)."""
        value = self.results.get(key)
        return float(value) if isinstance(value, int | float) and value == value else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of the metric ``key``, in the order of steps; of several stages at one step the last wins."""
        rows = (row for row in self.metrics if row["key"] == key and isinstance(row["value"], int | float))
        points = {int(row["step"]): float(row["value"]) for row in rows}
        steps = sorted(points)
        return steps, [points[step] for step in steps]


def read_run(path: str | Path) -> RunRecord:
    """Read one run directory; missing and torn pieces are left out.

    Raises:
        RunError: the folder does not exist or is no run.
    """
    run = RunDirectory.open(path)
    config, manifest = _config(run.config_path), read_json(run.manifest_path)
    return RunRecord(
        name=str(manifest.get("name") or config.get("name") or run.path.resolve().name),
        path=run.path,
        config=config,
        results={key: _number(value) for key, value in read_json(run.results_path).items()},
        metrics=_tidy(read_lines(run.metrics_path)),
        samples=_last_samples(read_lines(run.samples_path)),
        manifest=manifest,
        status=read_json(run.status_path),
        activations=run.activations_path if run.activations_path.is_file() else None,
    )


def logged(run: RunDirectory) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every step of metrics.jsonl with its metrics, in the order of steps; of several stages at one step the last wins."""
    steps: dict[int, dict[str, Any]] = {}
    for row in _tidy(read_lines(run.metrics_path)):
        steps.setdefault(row["step"], {})[row["key"]] = row["value"]
    yield from steps.items()


def find_runs(path: str | Path) -> list[Path]:
    """The run directories at or below ``path``, sorted; a study's folder gives all of its runs.

    Raises:
        RunError: there is none.
    """
    root = Path(path)
    if is_run(root):
        return [root]
    found = sorted({file.parent for name in (CONFIG, "status") for file in root.rglob(name) if is_run(file.parent)})
    if not found:
        raise RunError(f"{root} must be a run or a folder of runs; found {'none in it' if root.is_dir() else 'no such folder'}.")
    return found


def read_runs(paths: Iterable[str | Path]) -> list[RunRecord]:
    """The runs at or below ``paths``, each once, in the order given.

    Raises:
        RunError: a path holds no run.
    """
    return [read_run(run) for run in dict.fromkeys(run.resolve() for path in paths for run in find_runs(path))]


def _config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        value = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return {}
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _number(value: Any) -> Any:
    """``'inf'``, ``'-inf'`` and ``'nan'`` as the numbers they stand for; everything else as it is."""
    return float(value) if value in ("inf", "-inf", "nan") else value


def _tidy(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        with suppress(KeyError, TypeError, ValueError):
            step, stage, key = int(row["step"]), str(row.get("stage") or ""), str(row["key"])
            last[stage, key, step] = {"step": step, "stage": stage, "key": key, "value": _number(row["value"])}
    return sorted(last.values(), key=lambda row: int(row["step"]))


def _last_samples(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each set and prompt: a resumed run writes its samples again."""
    return list({(str(row.get("set", "")), str(row.get("prompt", ""))): row for row in rows}.values())
