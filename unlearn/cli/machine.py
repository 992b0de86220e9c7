"""What ``unlearn doctor`` asks of the machine: packages, devices, disk, tracking store."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
import shutil
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from unlearn.assembly import cache_folder
from unlearn.cli.doctor import Check, Finding
from unlearn.config.schema import RunConfig

LITTLE_GB, TOO_LITTLE_GB = 5.0, 0.5
TIMEOUT_S = 4
GB = 1024**3


class Given(Protocol):
    """What there is of a configuration."""

    runs: list[RunConfig]


def checks(given: Given) -> list[tuple[str, Check]]:
    """(name, check) of each thing to look at; ``given`` says which folders and which tracking store."""
    return [
        ("python", python),
        ("packages", packages),
        ("devices", devices),
        ("memory", main_memory),
        ("disk", lambda: disk(given.runs)),
        ("hub", hub),
        ("tracking", lambda: tracking(given.runs)),
    ]


def python() -> Iterator[Finding]:
    """The interpreter against the package's own requirement."""
    found = platform.python_version()
    wanted = metadata.metadata("unlearn")["Requires-Python"]
    text = f"{found} on {platform.system()} {platform.machine()}"
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield Finding("ok", "python", text)
    else:
        yield Finding("fail", "python", f"must be {wanted}; found {text}.")


def packages() -> Iterator[Finding]:
    """Installed versions against the minimums in the package's metadata; optional ones are told apart."""
    good: list[str] = []
    optional: dict[str, str] = {}
    for requirement in map(Requirement, metadata.requires("unlearn") or ()):
        extra = requirement.marker is not None and "extra" in str(requirement.marker)
        if extra and "dev" in str(requirement.marker):
            continue
        if requirement.marker is not None and not extra and not requirement.marker.evaluate():
            continue
        found = _version(requirement.name)
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            good.append(f"{requirement.name} {found}")
        elif extra and found is None:
            optional[requirement.name] = str(requirement.marker)
        else:
            expected = f"{requirement.name} {requirement.specifier}".strip()
            text = f"expected {expected}; found {'none' if found is None else found}."
            yield Finding("fail", "packages", text, f"pip install '{requirement.name}{requirement.specifier}'")
    yield Finding("ok", "packages", ", ".join(good))
    yield from _untested()
    if optional:
        extras = sorted({name for marker in optional.values() for name in re.findall(r"extra == ['\"]([\w-]+)['\"]", marker)})
        remedy = f"pip install 'unlearn[{','.join(extras)}]' adds them"
        yield Finding("ok", "packages", f"optional, not installed: {', '.join(optional)}", remedy)


def _untested() -> Iterator[Finding]:
    """Versions that differ from those the tests ran with (``constraints.txt``), where that file is beside the package."""
    file = Path(__file__).parents[2] / "constraints.txt"
    if not file.is_file():
        return
    tested = dict(line.split("==", 1) for line in file.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#")
    direct = {Requirement(text).name.lower() for text in metadata.requires("unlearn") or ()}
    other = []
    for name, wanted in tested.items():
        found = _version(name) if name.lower() in direct else None
        if found is not None and found.split("+")[0] != wanted.strip().split("+")[0]:
            other.append(f"{name} {found} (tested: {wanted.strip()})")
    if other:
        yield Finding("warn", "packages", f"not the tested versions: {', '.join(other)}", "pip install -c constraints.txt -e .")
    else:
        yield Finding("ok", "packages", "versions are the tested ones (constraints.txt)")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main_memory() -> Iterator[Finding]:
    """Main memory that a new process can have."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        kib = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines() if line.endswith("kB")}
        total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
        facts = {"total_bytes": total, "available_bytes": free}
        yield Finding("ok", "memory", f"{free / GB:.1f} of {total / GB:.1f} GB available", facts=facts)


def devices() -> Iterator[Finding]:
    """What torch can compute on."""
    import torch

    yield Finding("ok", "devices", f"CPU, cores: {os.cpu_count()}, torch threads: {torch.get_num_threads()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            bf16 = "" if torch.cuda.is_bf16_supported() else ", no bfloat16"
            name, (major, minor) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
            text = f"cuda:{index} {name}, compute capability {major}.{minor}, {free / GB:.0f} of {total / GB:.0f} GB free{bf16}"
            yield Finding("ok", "devices", text, facts={"name": name, "free_bytes": free, "total_bytes": total, "bf16": not bf16})
    elif shutil.which("nvidia-smi"):
        remedy = f"torch {torch.__version__} may be a build without CUDA, or the driver too old for it"
        yield Finding("warn", "devices", "the machine has nvidia-smi, but torch finds no GPU", remedy)
    elif torch.backends.mps.is_available():
        yield Finding("ok", "devices", "mps")


def _existing(path: Path) -> Path:
    """``path`` or the nearest of its parents that exists."""
    path = path.expanduser().absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def disk(runs: list[RunConfig]) -> Iterator[Finding]:
    """Room and write permission where runs and caches go."""
    outs = {Path(run.out): "runs" for run in runs} or {Path("runs"): "runs"}
    caches = {cache_folder(run): "cache" for run in runs or [RunConfig()]}
    for folder, role in {**outs, **caches}.items():
        place = _existing(folder)
        free = shutil.disk_usage(place).free / GB
        text = f"{role} in {folder}: {free:.1f} GB free"
        if not os.access(place, os.W_OK):
            yield Finding("fail", "disk", f"{role} in {folder}: {place} must be a folder that can be written; found none.")
        elif free < TOO_LITTLE_GB:
            yield Finding("fail", "disk", f"{text}; expected {TOO_LITTLE_GB:g} GB or more.")
        else:
            yield Finding("warn" if free < LITTLE_GB else "ok", "disk", text)


def hub() -> Iterator[Finding]:
    """Whether models may be fetched, and what the hub's cache holds."""
    from huggingface_hub import constants

    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    folder = Path(constants.HF_HUB_CACHE)
    there = sorted(p.parent.name.removeprefix("models--").replace("--", "/") for p in folder.glob("models--*/snapshots"))
    text = "offline (HF_HUB_OFFLINE): local files and the hub's cache only" if offline else "models may be fetched from the hub"
    listed = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
    yield Finding("ok", "hub", f"{text}; {folder} holds {listed or 'no models'}", facts={"offline": offline, "cached": there})
    token = "set" if os.environ.get("HF_TOKEN") or Path(constants.HF_TOKEN_PATH).is_file() else "not set"
    if not offline and token == "not set":
        yield Finding("ok", "hub", "no token: Gemma and Llama ask for one (accept their licence on the hub, then `hf auth login`)")


def tracking(runs: list[RunConfig]) -> Iterator[Finding]:
    """Whether the MLflow store of each run can be reached; a run goes on without it."""
    configs = [run.tracking for run in runs] or [RunConfig().tracking]
    if not any(config.enabled for config in configs):
        yield Finding("ok", "tracking", "off (tracking.enabled: false)")
        return
    from unlearn.tracking.mlflow import DEFAULT_URI
    from unlearn.tracking.store import public_uri

    for uri in dict.fromkeys(c.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI for c in configs if c.enabled):
        problem = _unreachable(uri)
        if problem:
            remedy = "runs go on without it; set tracking.uri or MLFLOW_TRACKING_URI, or tracking.enabled=false"
            yield Finding("warn", "tracking", f"MLflow at {public_uri(uri)}: {problem}", remedy)
        else:
            yield Finding("ok", "tracking", f"MLflow at {public_uri(uri)}")


def _unreachable(uri: str) -> str:
    """Why the store at ``uri`` cannot be used, or an empty string; makes nothing there."""
    from unlearn.tracking.store import knock, public_uri, sqlite_file

    scheme = urlsplit(uri).scheme
    file = sqlite_file(uri) or (Path(urlsplit(uri).path) if scheme in ("", "file") else None)
    try:
        if scheme in ("http", "https"):
            with urllib.request.urlopen(f"{public_uri(uri).rstrip('/')}/health", timeout=TIMEOUT_S) as answer:
                return "" if answer.status == 200 else f"answers with status {answer.status}"
        if file is not None and not os.access(place := _existing(file), os.W_OK):
            return f"{place} cannot be written"
        if file is None or file.is_file():
            knock(uri, TIMEOUT_S)
    except (OSError, ValueError, sqlite3.Error) as error:
        return f"no answer ({getattr(error, 'reason', None) or error})"
    return ""
