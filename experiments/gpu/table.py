"""The tables of README.md, from the files in results/."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GIB = 2**30
PHASES = {
    "loading": ("language model and SAE",),
    "banks and hook": ("hook point", "activation banks"),
    "reference": ("reference",),
    "measuring the original": ("the original model", "recognition of the original model"),
}
Results = Mapping[str, Mapping[str, Any]]


def rows(results: Results) -> Iterator[str]:
    """One line for each run of a model."""
    heads = "s/step | tokens/s | peak GiB | estimated GiB | error | loading s | banks and hook s | reference s | original s | final s"
    yield f"| model | method | {heads} |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for preset in ("gemma-2-2b", "llama-3.1-8b"):
        for method, run in results.get(preset, {}).items():
            if "step_seconds" not in run:
                continue
            guess = results.get(f"{preset}-estimates", {}).get(method)
            estimate = float("nan") if guess is None else (sum(guess["parts"].values()) - guess["parts"]["framework"]) / GIB
            peak = run["peak_bytes"] / GIB
            error = estimate / peak - 1 if peak else float("nan")
            spent = [sum(run["phases"].get(name, 0.0) for name in names) for names in PHASES.values()]
            seconds = " | ".join(f"{value:.1f}" for value in [*spent, run["measurement_seconds"]])
            speed = f"{run['step_seconds']:.3f} | {run['tokens_per_second']:.0f}"
            yield f"| {preset} | {method} | {speed} | {peak:.2f} | {estimate:.2f} | {error:+.1%} | {seconds} |"


def world(results: Results) -> Iterator[str]:
    """The embedded world on each place."""
    yield "| method | place | ms/step | tokens/s | measuring the original s | final s |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, run in results.get("world", {}).items():
        method, place = name.split(" ", 1)
        first = sum(run["phases"].get(phase, 0.0) for phase in PHASES["measuring the original"])
        speed = f"{1000 * run['step_seconds']:.1f} | {run['tokens_per_second']:.0f}"
        yield f"| {method} | {place} | {speed} | {first:.1f} | {run['measurement_seconds']:.1f} |"


def fill(page: Path, results: Results) -> None:
    """Put the tables of ``results`` into the page."""
    text = "\n".join([*rows(results), "", *world(results)])
    before = page.read_text(encoding="utf-8")
    page.write_text(
        re.sub(r"(<!-- table -->\n).*?(<!-- end of table -->)", lambda found: f"{found[1]}\n{text}\n\n{found[2]}", before, flags=re.DOTALL),
        encoding="utf-8",
    )


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results"
    fill(HERE / "README.md", {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in place.glob("*.json")})
