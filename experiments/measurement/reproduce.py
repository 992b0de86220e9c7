"""Can the measurement be believed? Calibration of the tests, agreement with the oracles, cost; writes the tables into README.md.

    python experiments/measurement/reproduce.py [key=value ...]

Takes the overrides of ``unlearn run`` (data source ``world``); ``only=calibration|agreement|cost`` makes one part. Parts that are in
results/ are not made again. ``UNLEARN_SHARED`` names a folder with TOFU and with oracles, both optional.
Exit status 1 when a criterion is missed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from agreement import agreement
from calibration import calibration
from cost import LIMITS, cost

from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BASE = {"name": "measurement", "out": "runs", "data": {"source": "world"}, "method": {"name": "none"}}
CLOSE = 1e-6
"""Largest difference to an oracle that counts as agreement."""

NOMINAL = (
    "C2ST outside its null interval",
    "C2ST bootstrap interval misses 0.5",
    "MMD p-value <= 0.05",
    "KS finds any feature",
    "Mahalanobis interval misses 0.5",
    "P(unknown) interval misses the others' mean",
)
"""Alarms that 5 % of like groups should raise at most."""

Found = dict[str, Any]


def kept(name: str) -> Found:
    """What an earlier call found."""
    path = RESULTS / f"{name}.json"
    found: Found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def keep(name: str, found: Found) -> None:
    """Write the numbers of one part."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def calibration_lines(found: Found) -> list[str]:
    """One row for each alarm, one column for each place, known against unknown behind the stroke."""
    lines = ["| alarm | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    first = next(iter(found.values()))
    for alarm in first["unknown against unknown"]["rates"]:
        cells = []
        for place in found.values():
            rate, low, high = place["unknown against unknown"]["rates"][alarm]
            cells.append(f"{rate:.3f} ({low:.3f} to {high:.3f}) / {place['known against unknown']['rates'][alarm][0]:.2f}")
        lines.append(f"| {alarm} | " + " | ".join(cells) + " |")
    lines += ["", "| p-value, unknown against unknown: KS test of uniformity (share at most 0.05) | " + " | ".join(found) + " |"]
    lines.append("|---|" + "---|" * len(found))
    for name in first["unknown against unknown"]["uniform"]:
        tests = [place["unknown against unknown"]["uniform"][name] for place in found.values()]
        lines.append(f"| {name} | " + " | ".join(f"{test['p']:.3f} ({test['at most 0.05']:.3f})" for test in tests) + " |")
    same = [place["unknown against unknown"]["areas like the null draws"]["p"] for place in found.values()]
    lines.append("| C2ST areas and null draws from one distribution | " + " | ".join(f"{p:.3f}" for p in same) + " |")
    lines += ["", "| mean: unknown / known against unknown | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for name in first["unknown against unknown"]["means"]:
        sides = [[place[f"{side} against unknown"]["means"][name] for side in ("unknown", "known")] for place in found.values()]
        lines.append(f"| {name} | " + " | ".join(f"{like:.3f} / {unlike:.3f}" for like, unlike in sides) + " |")
    return lines


def agreement_lines(found: Found) -> list[str]:
    """One row for each metric."""
    files = list(found)
    lines = ["| metric | numbers in metrics.json | " + " | ".join(files) + " |", "|---|---:|" + "---:|" * len(files)]
    for name in found[files[0]]:
        cells = [f"{found[file][name]['largest difference']:.1e}" for file in files]
        lines.append(f"| {name} | {found[files[0]][name]['numbers']} | " + " | ".join(cells) + " |")
    return lines


def cost_lines(found: Found) -> list[str]:
    """What was measured, one row each."""
    return ["| what | value |", "|---|---:|"] + [f"| {name} | {json.dumps(value)} |" for name, value in found.items()]


def criteria(parts: dict[str, Found]) -> dict[str, bool]:
    """What the study has to show, by name. A rate is too high where the whole of its binomial interval lies above 5 %."""
    verdict = {}
    for place, found in parts["calibration"].items():
        for alarm in NOMINAL:
            verdict[f"{place}: {alarm}, 5 % or less"] = found["unknown against unknown"]["rates"][alarm][1] <= 0.05
    for file, metrics in parts["agreement"].items():
        for name, case in metrics.items():
            verdict[f"{file}: {name} to {CLOSE}"] = case["largest difference"] <= CLOSE
    for name, most in LIMITS.items():
        if parts["cost"]:
            verdict[f"cost: {name} <= {most}"] = parts["cost"][name] <= most
    return verdict


def write(parts: dict[str, Found]) -> list[str]:
    """Put the tables where the README has room for them; the criteria that are missed."""
    verdict = criteria(parts)
    missed = [name for name, met in verdict.items() if not met]
    said = [f"{len(verdict) - len(missed)} of {len(verdict)} criteria are met." + "".join(f"\nMissed: {name}." for name in missed)]
    keep("criteria", verdict)
    tables = {"calibration": calibration_lines, "agreement": agreement_lines, "cost": cost_lines}
    blocks = {name: tables[name](found) for name, found in parts.items() if found} | {"criteria": said}
    text = (HERE / "README.md").read_text(encoding="utf-8")
    for name, lines in blocks.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}{begin}\n" + "\n".join(lines) + f"\n\n<!-- end of {name} -->\n" + rest.partition(f"<!-- end of {name} -->\n")[2]
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print(said[0])
    return missed


def main(arguments: list[str]) -> int:
    """Make what is missing, keep the numbers, write the tables; the number of criteria that were missed."""
    torch.set_num_threads(1)
    only = next((a.partition("=")[2] for a in arguments if a.startswith("only=")), None)
    config = load_config(BASE, [a for a in arguments if not a.startswith("only=")], plugin_schemas())
    makers: dict[str, Callable[[Found], Found]] = {
        "calibration": lambda done: calibration(config, done, partial(keep, "calibration")),
        "agreement": lambda done: done or agreement(),
        "cost": lambda done: done or cost(),
    }
    parts = {name: kept(name) for name in makers}
    for name, make in makers.items():
        if only in (None, name):
            parts[name] = make(parts[name])
            keep(name, parts[name])
    return len(write(parts))


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
