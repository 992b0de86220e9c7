"""Every method of the registry on three embedded worlds, with its defaults; and, where those do not forget, with its main knob turned.

    python experiments/world_baselines/reproduce.py [--jobs N] [key=value ...]

What is done per seed is what one command does:

    unlearn compare experiments/world_baselines/world_baselines.yaml --methods all --gold --seeds 0-2
    unlearn compare experiments/world_baselines/knobs.yaml --seeds 0-2

Runs that are finished are not run again. Writes
results/summary.json, {method: {key: {mean, ci_low, ci_high, n}}}, and the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from unlearn.report.summary import marks_of, plain_summary, summarise, summary_markdown
from unlearn.tracking.reader import read_runs

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
RUNS = Path("runs")
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
KEPT = ("forget/", "retain/", "unknown/", "generic/", "latent/", "collapse/", "cost/")


def commands(seed: int, overrides: list[str]) -> list[list[str]]:
    """The two commands of one seed."""
    call = [sys.executable, "-m", "unlearn", "compare"]
    return [
        [*call, str(HERE / "world_baselines.yaml"), *overrides, "--methods", "all", "--gold", "--seeds", str(seed)],
        [*call, str(HERE / "knobs.yaml"), *overrides, "--seeds", str(seed)],
    ]


def run_all(jobs: int, overrides: list[str]) -> None:
    """Every seed, up to ``jobs`` of them at a time; the lines that a command prints go to the terminal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    waiting = list(SEEDS)
    running: dict[int, tuple[subprocess.Popen[bytes], list[list[str]]]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            first, *rest = commands(seed := waiting.pop(0), overrides)
            running[seed] = (subprocess.Popen(first, env=environment), rest)
        for seed, (process, rest) in list(running.items()):
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
            del running[seed]
            if rest:
                running[seed] = (subprocess.Popen(rest[0], env=environment), rest[1:])


def rounded(entry: dict[str, float]) -> dict[str, float]:
    """Six significant digits are enough for a file in git."""
    return {name: float(f"{value:.6g}") for name, value in entry.items()}


def main() -> None:
    """Run, then keep the summary and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at the same time")
    parser.add_argument("--table", action="store_true", help="run nothing, read what is there")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    if not given.table:
        run_all(given.jobs, given.overrides)
    records = [r for r in read_runs([RUNS / "world_baselines", RUNS / "world_knobs"]) if r.status.get("state") == "finished"]
    summary = {label.rpartition("/")[2]: found for label, found in summarise(records).items()}
    marks = {label.rpartition("/")[2]: mark for label, mark in marks_of(records).items()}
    small = {label: {key: rounded(entry) for key, entry in found.items() if key.startswith(KEPT)} for label, found in summary.items()}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "summary.json").write_text(json.dumps(plain_summary(small), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}{summary_markdown(summary, marks)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
