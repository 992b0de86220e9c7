"""Every trained method, tuned with 20 trials each on validation rows, then measured with 5 seeds on test rows, attacks included.

    python experiments/world_comparison/reproduce.py [--jobs N] [--table] [key=value ...]

This is one command, and the table in README.md:

    unlearn compare experiments/world_comparison/world_comparison.yaml --methods all --gold --trials 20 --seeds 5 \\
        --attacks lens,patch,probe,prompt,quantise,relearn,sample,steer,strip --ledger experiments/world_comparison/results

Files in results/ are what is done: a tuned method, and a method with a seed, that have their file are not made again, in a fresh clone
neither. ``--table`` makes the summary and the table from what is there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from unlearn.cli.matrix import chosen
from unlearn.comparison import Plan, read_plan
from unlearn.comparison.conclude import conclude
from unlearn.comparison.ledger import SUMMARY, Ledger
from unlearn.report.comparison import caption, comparison_markdown

HERE = Path(__file__).parent
CONFIG, RESULTS, README = HERE / "world_comparison.yaml", HERE / "results", HERE / "README.md"
ATTACKS = "lens,patch,probe,prompt,quantise,relearn,sample,steer,strip"
TRIALS, SEEDS, REFERENCE = 20, 5, "sae_guided"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def command(jobs: int, overrides: list[str]) -> list[str]:
    """What is run."""
    said = ["--methods", "all", "--gold", "--trials", str(TRIALS), "--seeds", str(SEEDS), "--attacks", ATTACKS, "--reference", REFERENCE]
    where = ["--jobs", str(jobs), "--ledger", str(RESULTS)]
    return [sys.executable, "-m", "unlearn", "compare", str(CONFIG), *overrides, *said, *where]


def the_plan() -> Plan:
    """The same comparison, to conclude from its files."""
    return read_plan(
        [CONFIG],
        [],
        methods=chosen("all"),
        trials=TRIALS,
        seeds=range(SEEDS),
        suite=ATTACKS,
        reference=REFERENCE,
        ledger=RESULTS,
        gold=True,
    )


def state(summary: dict[str, Any]) -> str:
    """What is done and what remains, in a sentence."""
    progress = summary["progress"]
    methods = progress["tuned"] + len(progress["to_tune"])
    cost = sum(v for k, v in summary["cost"].items() if k in ("tuning_cpu_seconds", "test_cpu_seconds") and v == v)
    return (
        f"{progress['tuned']} of {methods} methods are tuned, {progress['tests']} of {progress['tests_in_all']} tests are made; "
        f"{cost / 3600:.1f} CPU hours so far."
    )


def main() -> None:
    """Run what is missing, then conclude and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="methods worked on at the same time")
    parser.add_argument("--table", action="store_true", help="run nothing, read what is there")
    parser.add_argument("overrides", nargs="*", help="where runs are kept and how (out=..., cache=...)")
    given = parser.parse_args()
    code = 0
    if not given.table:
        code = subprocess.run(command(given.jobs, given.overrides), env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
    summary = conclude(the_plan())
    Ledger(RESULTS).write(RESULTS / SUMMARY, summary)
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    text = f"{state(summary)}\n\n{comparison_markdown(summary)}\n\n{caption(summary)}.\n"
    README.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
