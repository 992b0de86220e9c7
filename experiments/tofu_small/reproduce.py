"""Run the study, keep its numbers here and write the table into README.md.

    python experiments/tofu_small/reproduce.py data.root=DIR [key=value ...] [--collect]

Takes the overrides of ``unlearn run`` (``out=``, ``cache=``, ...). Runs that are finished are not run again; with ``--collect`` none is
run, and the numbers of those that are there are kept. Only numbers are kept: no rows, no answers.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from unlearn.assembly import cache_folder
from unlearn.config.load import load_study
from unlearn.config.schema import RunConfig
from unlearn.run import execute
from unlearn.tracking.rundir import run_path
from unlearn.world.tofu_small import TofuSmallSource

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "tofu_small.yaml"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"

SETS = {
    "forget": "",
    "forget in other words": "_paraphrased",
    "retain": "",
    "retain, unseen": "_unseen",
    "real authors": "",
    "world facts": "",
}
METRICS = {"probability": "probability", "ROUGE-L": "rouge_l", "truth ratio": "truth_ratio", "refusals": "refusal_rate"}
LATENT = {
    "P(unknown) of the target": "latent/p_unknown",
    "C2ST AUC": "latent/c2st_auc",
    "C2ST null, low": "latent/c2st_null_low",
    "C2ST null, high": "latent/c2st_null_high",
    "MMD p-value": "latent/mmd_p_value",
    "distance to known": "latent/distance_to_known",
    "distance to unknown": "latent/distance_to_unknown",
    "world-fact perplexity": "generic/perplexity",
    "refusals, unknown names": "unknown/refusal_rate",
    "collapse flag": "collapse/flag",
    "seconds a step (wall)": "cost/step_seconds",
}


def key(name: str, metric: str) -> str:
    """Result key of a metric on a set."""
    scope = name.split(",")[0].split(" in ")[0].replace(" ", "_")
    return f"{scope}/{metric}{SETS[name]}"


def number(value: float) -> str:
    """Three decimals, or powers of ten where that would be long."""
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.1e}"


def table(results: dict[str, dict[str, float]], rows: dict[str, str]) -> str:
    """A Markdown table: one row for each of ``rows`` (title to result key), one column for each run."""
    runs = list(results)
    lines = ["| | " + " | ".join(runs) + " |", "|---|" + "---:|" * len(runs)]
    for title, wanted in rows.items():
        cells = [number(results[run][wanted]) if wanted in results[run] else "" for run in runs]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def built(config: RunConfig) -> dict[str, object]:
    """What the cache says about the model: steps, rows, CPU seconds, how well the rows are known."""
    source = TofuSmallSource(config.data, seed=config.seed, cache=cache_folder(config))
    manifest = source.cache / "tofu_small" / source.fingerprint() / "manifest.json"
    return dict(json.loads(manifest.read_text(encoding="utf-8"))["facts"])


def main(words: list[str]) -> None:
    """Run, copy the numbers, write the table."""
    configs = load_study(CONFIG, [word for word in words if word != "--collect"])
    kept = HERE / "results"
    kept.mkdir(exist_ok=True)
    results = {}
    for config in configs:
        if "--collect" not in words:
            execute(config)
        run = config.name.split("/")[-1]
        shutil.copyfile(run_path(config.out, config.name) / "results.json", kept / f"{run}.json")
        results[run] = json.loads((kept / f"{run}.json").read_text(encoding="utf-8"))
    answers = {f"{name}: {title}": key(name, metric) for name in SETS for title, metric in METRICS.items()}
    chosen = {run: {k: values[k] for k in (*answers.values(), *LATENT.values()) if k in values} for run, values in results.items()}
    summary = {"model": built(configs[0]), "runs": chosen}
    (kept / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n{table(results, answers)}\n{table(results, LATENT)}\n{END}{after}"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
