"""Train the RouteSAE, run the quickstart's ``sae_distribution`` with it and with the world's own SAE, write the tables into README.md.

    python experiments/route_sae/reproduce.py [key=value ...]

Takes the overrides of ``unlearn run``. What is finished is not made again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train import Recipe, build

from unlearn.assembly import Assembly, cache_folder
from unlearn.config.load import load_study
from unlearn.config.schema import RunConfig
from unlearn.data.tokenize import batches
from unlearn.functional.statistics import c2st_auc, c2st_null
from unlearn.latents.banks import collect
from unlearn.models.lm import load_lm
from unlearn.models.route_sae import RouteSAE, load_route_sae
from unlearn.restore import restore
from unlearn.run import execute
from unlearn.tracking.files import read_json

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "quickstart.yaml"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
NULL_DRAWS = 30

SHOWN = {
    "forget": "forget/accuracy",
    "held-out wording": "forget/accuracy_paraphrased",
    "says unknown": "forget/refusal_rate_paraphrased",
    "retain": "retain/accuracy",
    "unseen": "retain/accuracy_unseen",
    "perplexity": "generic/perplexity",
    "base": "generic/perplexity_base",
    "probe AUC of the original": "latent/probe_auc",
    "P(unknown)": "latent/p_unknown",
    "C2ST": "latent/c2st_auc",
    "null low": "latent/c2st_null_low",
    "null high": "latent/c2st_null_high",
    "collapse": "collapse/flag",
}


def config_of(overrides: list[str]) -> RunConfig:
    """The study's one run that is looked at here, with overrides."""
    return next(c for c in load_study(CONFIG, overrides) if c.name.endswith("/sae_distribution"))


class Sites:
    """Where the classifier looks: every block, and what the RouteSAE reads."""

    def __init__(self, assembly: Assembly, routed: RouteSAE) -> None:
        self.meter, self.routed = assembly.suite.meter, routed
        self.sites: dict[str, int | RouteSAE] = {f"block {layer}": layer for layer in routed.layers} | {"routed": routed}

    def activations(self, lm: Any, group: str, site: int | RouteSAE) -> np.ndarray:
        """Entity tokens of a group, [N, D], in the order of its rows."""
        rows = self.meter.groups[group].tokens
        found: dict[int, np.ndarray] = {}
        for places, batch in batches(rows, 64, self.meter.pad_id):
            found |= dict(zip(places, collect(lm, [batch], site, "entity_end").numpy(), strict=True))
        return np.stack([found[i] for i in range(len(rows))])

    def auc(self, lm: Any) -> dict[str, float]:
        """C2ST of the targets against held-out unknown people, by site."""
        entities = np.concatenate([self.meter.groups[g].entities for g in ("forget", "unknown")])
        out = {}
        for name, site in self.sites.items():
            target, unknown = (self.activations(lm, group, site) for group in ("forget", "unknown"))
            labels = np.concatenate([np.ones(len(target)), np.zeros(len(unknown))])
            out[name] = c2st_auc(np.concatenate([target, unknown]), labels, entities, self.meter.seed)
        return out

    def null(self, lm: Any) -> dict[str, list[float]]:
        """95 % interval of the same between two groups of unknown people, by site."""
        entities = self.meter.groups["unknown"].entities
        n = len(set(self.meter.groups["forget"].entities))
        out = {}
        for name, site in self.sites.items():
            pool = self.activations(lm, "unknown", site)
            draws = c2st_null(pool, entities, n, len(set(entities)) - n, draws=NULL_DRAWS, seed=self.meter.seed)
            out[name] = [float(q) for q in np.quantile(draws, [0.025, 0.975])]
        return out

    def shares(self, lm: Any) -> dict[str, dict[str, float]]:
        """Blocks that the router reads at the name's last token, by group."""
        out = {}
        for group in ("forget", "known", "unknown"):
            hidden = {n: torch.from_numpy(self.activations(lm, group, n)) for n in self.routed.layers}
            counts = torch.bincount(self.routed.choice(hidden), minlength=len(self.routed.layers))
            out[group] = {f"block {n}": int(c) / int(counts.sum()) for n, c in zip(self.routed.layers, counts, strict=True)}
        return out


def measure(paths: dict[str, Path], routed: RouteSAE) -> dict[str, Any]:
    """C2ST by model and site, its null, and what the router reads."""
    found: dict[str, Any] = {"c2st": {}, "shares": {}}
    for name, path in paths.items():
        assembly = restore(path)
        sites, lm = Sites(assembly, routed), assembly.module.lm
        if name == "ordinary":
            config = assembly.config
            from unlearn.world.source import WorldSource

            source = WorldSource(config.data, seed=config.seed, cache=cache_folder(config))  # type: ignore[arg-type]
            original, _ = load_lm(config.model, source.assets().model)
            found["null"], found["c2st"]["original"] = sites.null(original), sites.auc(original)
            found["shares"]["original"] = sites.shares(original)
        found["c2st"][name], found["shares"][name] = sites.auc(lm), sites.shares(lm)
    return found


def cell(value: object) -> str:
    """A number for the table."""
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def tables(quality: dict[str, Any], results: dict[str, Any], found: dict[str, Any]) -> str:
    """The three tables of the README."""
    blocks = list(quality["shares"])
    lines = [
        f"RouteSAE: FVU {quality['fvu']:.3f} on rows it was not trained on, L0 {quality['l0']:.1f}, {quality['dead']} dead latents.",
        "",
        "| run | " + " | ".join(SHOWN) + " |",
        "|---|" + "---:|" * len(SHOWN),
        *(f"| {name} | " + " | ".join(cell(r.get(key)) for key in SHOWN.values()) + " |" for name, r in results.items()),
        "",
        "C2ST of targets against unseen unknown people, at the name's last token, by what the classifier is given:",
        "",
        "| model | " + " | ".join(found["null"]) + " |",
        "|---|" + "---:|" * len(found["null"]),
        *(f"| {name} | " + " | ".join(cell(v) for v in values.values()) + " |" for name, values in found["c2st"].items()),
        "| null, 95 % | " + " | ".join(f"{low:.2f}-{high:.2f}" for low, high in found["null"].values()) + " |",
        "",
        "Share of tokens that the router reads from each block:",
        "",
        "| tokens | " + " | ".join(f"block {n}" for n in blocks) + " |",
        "|---|" + "---:|" * len(blocks),
        "| all, original | " + " | ".join(cell(quality["shares"][n]) for n in blocks) + " |",
    ]
    for model, groups in found["shares"].items():
        lines += [f"| names of {g}, {model} | " + " | ".join(cell(v) for v in values.values()) + " |" for g, values in groups.items()]
    return "\n".join(lines)


def main(overrides: list[str]) -> None:
    """Train, run, measure, write."""
    config = config_of(["study=route_sae", "seed=0", "evaluation.every=0", *overrides])
    torch.set_num_threads(config.trainer.threads or torch.get_num_threads())
    folder = cache_folder(config) / "route_sae" / f"seed{config.seed}"
    if not (folder / "quality.json").is_file():
        build(config, folder, Recipe(seed=config.seed))
    routed_config = config_of(["study=route_sae_routed", "seed=0", "evaluation.every=0", f"sae.route={folder}", *overrides])
    paths = {"ordinary": execute(config), "routed": execute(routed_config)}
    results = {name: read_json(path / "results.json") for name, path in paths.items()}
    quality, found = read_json(folder / "quality.json"), measure(paths, load_route_sae(folder))
    (HERE / "results").mkdir(exist_ok=True)
    for name, content in {**results, "quality": quality, "sites": found}.items():
        (HERE / "results" / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    text = f"{before}{BEGIN}\n{tables(quality, results, found)}\n\n{END}{rest.partition(END)[2]}"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
