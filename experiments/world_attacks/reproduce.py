"""Every method of the registry under every attack, on three embedded worlds.

    python experiments/world_attacks/reproduce.py [--jobs N] [--table] [key=value ...]

What is done per seed is what three commands do:

    unlearn compare experiments/world_baselines/world_baselines.yaml --methods all --gold --seeds 0
    unlearn compare experiments/world_baselines/knobs.yaml --seeds 0
    unlearn attack runs/world_baselines/*/seed0 ... experiments/world_attacks/attacks.yaml --suite full --gold

Runs and attacks that are finished are not made again. Writes results/summary.json, {method: {key: {mean, ci_low, ci_high, n}}}, the figure
results/relearning.png, and the table in README.md; ``--table`` makes these from what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from unlearn.functional.judgement import TOLERANCE, attack_excesses, judge
from unlearn.registry import entries
from unlearn.report.attacks import relearning_figure
from unlearn.report.style import save
from unlearn.report.summary import marks_of, plain_summary, summarise
from unlearn.tracking.reader import RunRecord, read_runs

HERE = Path(__file__).parent
BASELINES = HERE.parent / "world_baselines"
SEEDS = (0, 1, 2)
RUNS = Path("runs")
TUNED = (
    *(f"world_knobs/{name}" for name in ("adaptive_rmu_weight10", "ce_u_skip0", "lunar_layer3", "satimp_weight5")),
    "world_attacks/sae_distribution",
)
"""Settings beside the defaults: methods whose defaults forget nothing, and the quickstart's setting of ``sae_guided``."""
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
KEPT = ("attack/", "forget/accuracy", "retain/accuracy", "generic/perplexity", "collapse/flag")


def folders(seed: int) -> list[str]:
    """Runs of one seed, those of the defaults first."""
    tuned = [RUNS / name / f"seed{seed}" for name in TUNED]
    return [str(path) for path in (*sorted(RUNS.glob(f"world_baselines/*/seed{seed}")), *tuned) if path.is_dir()]


def work(seed: int, overrides: list[str], attacking: list[str]) -> None:
    """All commands of one seed, one after the other; what fails in one of them does not stop the next."""
    call, environment = [sys.executable, "-m", "unlearn"], {**os.environ, "OMP_NUM_THREADS": "1"}
    every = [str(BASELINES / "world_baselines.yaml"), *overrides, "--methods", "all", "--gold", "--seeds", str(seed)]
    subprocess.run([*call, "compare", *every], env=environment, check=False)
    for path in (BASELINES / "knobs.yaml", HERE / "distribution.yaml"):
        subprocess.run([*call, "compare", str(path), *overrides, "--seeds", str(seed)], env=environment, check=False)
    what = [*folders(seed), str(HERE / "attacks.yaml"), *attacking, "--suite", "full", "--gold"]
    subprocess.run([*call, "attack", *what], env=environment, check=False)


def run_all(jobs: int, overrides: list[str], attacking: list[str]) -> None:
    """Every seed, up to ``jobs`` of them at a time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda seed: work(seed, overrides, attacking), SEEDS))


def rounded(entry: dict[str, float]) -> dict[str, float]:
    """Six significant digits are enough for a file in git."""
    return {name: float(f"{value:.6g}") for name, value in entry.items()}


def means(found: dict[str, dict[str, float]], base: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means over seeds as the results of one run, beside those of the original model; the interval of an excess is that over seeds."""
    results = {f"{key}_base": base[key]["mean"] for key in ("retain/accuracy_unseen",) if key in base}
    results |= {key: entry["mean"] for key, entry in found.items()}
    lows = {f"{key}/ci_low": entry["ci_low"] for key, entry in found.items() if key.endswith("_excess")}
    return {**results, **lows}


def table(summary: dict[str, dict[str, dict[str, float]]], marks: dict[str, str]) -> str:
    """One line for each method: what is forgotten and kept, what each attack gets out beyond its control, the verdict."""
    names = [name for name in entries("attack") if any(f"attack/{name}_excess" in found for found in summary.values())]
    lines = ["| method | forget | retain | unseen | " + " | ".join(name.replace("_", " ") for name in names) + " | verdict |"]
    lines.append("|---|---:|---:|---:|" + "---:|" * len(names) + "---|")
    for label, found in summary.items():
        results = means(found, summary.get("none", {}))
        excesses = attack_excesses(results)

        def cell(name: str, excesses: dict[str, tuple[float, float]] = excesses, results: dict[str, float] = results) -> str:
            if f"attack/{name}_excess" not in results:
                return "–"
            text = f"{results[f'attack/{name}_excess']:+.2f}"
            beyond, low = excesses[name]
            return f"**{text}**" if beyond > TOLERANCE and low > 0 else text

        shown = [label + (" (inference only)" if marks.get(label) else "")]
        shown += [f"{results[key]:.2f}" for key in ("forget/accuracy", "retain/accuracy", "retain/accuracy_unseen")]
        lines.append(f"| {' | '.join([*shown, *map(cell, names), judge(results).word])} |")
    return "\n".join(lines) + "\n"


def label_of(label: str) -> str:
    """Last part of a setting's name."""
    return label.rpartition("/")[2]


def write(records: list[RunRecord]) -> None:
    """Summary, figure and table."""
    summary = {label_of(label): found for label, found in summarise(records).items()}
    marks = {label_of(label): mark for label, mark in marks_of(records).items()}
    kept = {
        label: {key: rounded(entry) for key, entry in found.items() if key.startswith(KEPT) and "@" not in key}
        for label, found in summary.items()
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "summary.json").write_text(json.dumps(plain_summary(kept), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    words = {label: judge(means(found, summary.get("none", {}))).word for label, found in summary.items()}
    save(relearning_figure(summary, words), HERE / "results", "relearning")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}{table(summary, marks)}{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    """Run, then keep the summary and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at the same time")
    parser.add_argument("--table", action="store_true", help="run nothing, read what is there")
    parser.add_argument("overrides", nargs="*", help="settings of the runs; those that begin with attack. go to the attacks")
    given = parser.parse_args()
    attacking = [word for word in given.overrides if word.startswith("attack.")]
    if not given.table:
        run_all(given.jobs, [word for word in given.overrides if word not in attacking], attacking)
    records = [r for seed in SEEDS for r in read_runs(folders(seed)) if any(key.startswith("attack/") for key in r.results)]
    write(records)


if __name__ == "__main__":
    main()
