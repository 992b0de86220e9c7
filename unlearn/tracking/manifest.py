"""What is needed to repeat a run: versions, commit, seeds, fingerprints, hashes, hardware, batch and command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unlearn.config.fingerprint import fingerprint
from unlearn.config.schema import RunConfig
from unlearn.config.secrets import hide_secrets
from unlearn.tracking.files import dump_json, read_json, write_atomic
from unlearn.tracking.rundir import RunDirectory
from unlearn.types import STREAMS

PACKAGES: tuple[str, ...] = (
    "unlearn",
    "torch",
    "lightning",
    "transformers",
    "sae-lens",
    "peft",
    "torchmetrics",
    "mlflow",
    "numpy",
    "scipy",
    "scikit-learn",
)
"""Packages whose versions are kept, beside Python's."""


def write_manifest(run_dir: RunDirectory, config: RunConfig, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write manifest.json and return its content.

    ``extra`` adds keys and wins over the ones found here: data and model hashes (``data_fingerprint``, ``model_fingerprint``),
    ``world_size``, the id of the MLflow run (``mlflow_run_id``), and whatever else the caller knows.
    """
    manifest = {
        "name": config.name,
        "fingerprint": fingerprint(config),
        "seeds": {"seed": config.seed},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "versions": versions(),
        "git": git_state(),
        "hardware": hardware(),
        "batch": {**{stream: getattr(config.data.batch, stream) for stream in STREAMS}, "accumulate": config.trainer.accumulate},
        "precision": {"dtype": config.model.dtype, "trainer": config.trainer.precision},
        **(extra or {}),
    }
    write_atomic(run_dir.manifest_path, dump_json(manifest) + "\n")
    return manifest


def update_manifest(run_dir: RunDirectory, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``extra`` into manifest.json at the top level and return all of it."""
    manifest = {**read_json(run_dir.manifest_path), **extra}
    write_atomic(run_dir.manifest_path, dump_json(manifest) + "\n")
    return manifest


def versions() -> dict[str, str]:
    """Versions of Python and of ``PACKAGES``, as far as installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """``{"commit": hash, "dirty": bool}`` of the working tree around ``folder`` (default: the current folder); None outside git."""
    where = str(folder or Path.cwd())

    def git(*words: str) -> str:
        done = subprocess.run(("git", "-C", where, *words), capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Machine type, processors this process may use, memory in GiB, and the GPUs by name."""
    import torch

    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        memory = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": cpus,
        "memory_gib": memory,
        "gpus": gpus,
        "threads": torch.get_num_threads(),
    }


def command() -> str:
    """The command line of this process, its program by name only, without passwords."""
    program, *words = sys.argv or [""]
    return shlex.join([Path(program).name or "python", *map(hide_secrets, words)])
