"""Run configs/quickstart.yaml on three worlds, check what it has to show, and write the table into README.md.

    python experiments/quickstart/reproduce.py [key=value ...]

Takes the overrides of ``unlearn run``. A run whose file is in results/ is kept; delete the file to make it again. Exit status 1 when a
criterion is missed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from unlearn.config.load import load_study
from unlearn.run import execute

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "quickstart.yaml"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
SEEDS = (0, 1, 2)

SHOWN = {
    "forget": "forget/accuracy",
    "held-out wording": "forget/accuracy_paraphrased",
    "says unknown": "forget/refusal_rate_paraphrased",
    "retain": "retain/accuracy",
    "unseen": "retain/accuracy_unseen",
    "unknown names": "unknown/refusal_rate",
    "perplexity": "generic/perplexity",
    "P(unknown)": "latent/p_unknown",
    "C2ST": "latent/c2st_auc",
    "null low": "latent/c2st_null_low",
    "null high": "latent/c2st_null_high",
    "collapse": "collapse/flag",
}

Found = dict[str, Any]


def checks(run: str, r: Found) -> dict[str, bool]:
    """What a run has to show, by name."""
    if run == "base":
        return {
            "forget/accuracy >= 0.99": r["forget/accuracy"] >= 0.99,
            "retain/accuracy >= 0.99": r["retain/accuracy"] >= 0.99,
            "unknown names answered unknown >= 0.95": r["unknown/refusal_rate"] >= 0.95,
            "best unknown-latent separation >= 0.4": r["latent/best_unknown_separation"] >= 0.4,
            "probe AUC >= 0.95": r["latent/probe_auc"] >= 0.95,
        }
    if run == "sae_distribution":
        return {
            "forget/accuracy <= 0.02": r["forget/accuracy"] <= 0.02,
            "forget/accuracy_paraphrased <= 0.05": r["forget/accuracy_paraphrased"] <= 0.05,
            "retain/accuracy >= 0.97": r["retain/accuracy"] >= 0.97,
            "retain/accuracy_unseen >= 0.95": r["retain/accuracy_unseen"] >= 0.95,
            "perplexity <= 1.03 x base": r["generic/perplexity"] <= 1.03 * r["generic/perplexity_base"],
            "C2ST inside its null interval": r["latent/c2st_null_low"] <= r["latent/c2st_auc"] <= r["latent/c2st_null_high"],
            "P(unknown) >= 0.95": r["latent/p_unknown"] >= 0.95,
        }
    if run == "sae_erase":
        return {
            "forget/accuracy <= 0.02": r["forget/accuracy"] <= 0.02,
            "forget/accuracy_paraphrased <= 0.02": r["forget/accuracy_paraphrased"] <= 0.02,
            "retain/accuracy >= 0.99": r["retain/accuracy"] >= 0.99,
            "retain/accuracy_unseen >= 0.98": r["retain/accuracy_unseen"] >= 0.98,
            "perplexity <= 1.01 x base": r["generic/perplexity"] <= 1.01 * r["generic/perplexity_base"],
            "C2ST inside its null interval": r["latent/c2st_null_low"] <= r["latent/c2st_auc"] <= r["latent/c2st_null_high"],
            "P(unknown) >= 0.95": r["latent/p_unknown"] >= 0.95,
            "training <= 60 CPU seconds": r["cost/train_cpu_seconds"] <= 60,
        }
    if run == "gradient_ascent":
        broken = r["retain/accuracy"] <= 0.5 or r["generic/perplexity"] > 1.5 * r["generic/perplexity_base"]
        return {
            "retain <= 0.5 or perplexity > 1.5 x base": broken,
            "collapse flag set": r["collapse/flag"] == 1 and bool(r["collapse/reason"]),
        }
    return {}


def cell(value: object) -> str:
    """A number for the table."""
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1e}"


def main(overrides: list[str]) -> int:
    """Run, keep the numbers, write the table; the number of criteria that were missed."""
    (HERE / "results").mkdir(exist_ok=True)
    lines = ["| seed | run | " + " | ".join(SHOWN) + " |", "|---|---|" + "---:|" * len(SHOWN)]
    verdicts: dict[str, dict[str, dict[str, bool]]] = {}
    for seed in SEEDS:
        for config in load_study(CONFIG, [f"study=quickstart_seed{seed}", f"seed={seed}", *overrides]):
            run = config.name.split("/")[-1]
            kept = HERE / "results" / f"{run}_seed{seed}.json"
            if not kept.exists():
                results = (execute(config, go_on=True) / "results.json").read_text(encoding="utf-8")
                kept.write_text(json.dumps(json.loads(results), indent=1) + "\n", encoding="utf-8")
            found: Found = json.loads(kept.read_text(encoding="utf-8"))
            verdicts.setdefault(f"seed {seed}", {})[run] = checks(run, found)
            lines.append(f"| {seed} | {run} | " + " | ".join(cell(found.get(key)) for key in SHOWN.values()) + " |")
    flat = [(s, run, name, ok) for s, runs in verdicts.items() for run, named in runs.items() for name, ok in named.items()]
    missed = [f"{s}, {run}: {name}" for s, run, name, ok in flat if not ok]
    said = f"{len(flat) - len(missed)} of {len(flat)} criteria are met." + "".join(f"\nMissed: {m}." for m in missed)
    (HERE / "results" / "criteria.json").write_text(json.dumps(verdicts, indent=1) + "\n", encoding="utf-8")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n\n{said}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(said)
    return len(missed)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
