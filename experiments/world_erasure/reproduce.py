"""sae_erase on worlds and forget sets that it was not tuned on, beside the gold model; on the one that it was, each term turned off.

    python experiments/world_erasure/reproduce.py [--only PATTERN] [--most N] [--table] [key=value ...]

A cell is a setting of erasure.yaml on one world and one forget set: results/<setting>_seed<S>_set<F>.json. A cell whose file is there is
not made again, whoever made it; an interrupted one goes on after the last attack. ``--only`` takes patterns of cells
(``sae_erase_seed1_*``), ``--most`` ends after so many new ones, ``--table`` makes the tables in README.md from what is there. Attacks have
the grids of experiments/world_attacks/attacks.yaml.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
RESULTS, STUDY = HERE / "results", HERE / "erasure.yaml"
ATTACKS = HERE.parent / "world_attacks" / "attacks.yaml"
BEGIN, END = "<!-- {} -->\n", "<!-- end of {} -->\n"
TUNED = (0, 0)
"""World seed and forget set on which every choice was made."""
FRESH = tuple((seed, forget_set) for forget_set in (0, 1, 2) for seed in (1, 2, 3))
MAIN = ("sae_erase", "gold")
BESIDE = ("none", "grad_diff", "tar", "sae_distribution")
ABLATIONS = ("no_sae", "no_output", "no_hidden", "no_share", "no_meta", "cap", "no_patch", "no_noise", "no_replay", "no_virtual", "every2")
FEW = "relearn,relearn_lora,patch,steer,quantise"
"""Attacks on what is not in the main comparison."""


class Cell(NamedTuple):
    """A setting on one world and forget set."""

    setting: str
    seed: int
    forget_set: int

    @property
    def label(self) -> str:
        """Name of its file."""
        return f"{self.setting}_seed{self.seed}_set{self.forget_set}"

    @property
    def suite(self) -> str:
        """Attacks that it meets."""
        return "full" if self.setting in MAIN else FEW


CELLS = [
    *(Cell(setting, *TUNED) for setting in (*MAIN, *BESIDE)),
    *(Cell(setting, *place) for place in FRESH for setting in MAIN),
    *(Cell(setting, *TUNED) for setting in ABLATIONS),
]
"""Every cell, in the order in which they are made."""


def ranks(path: Path, config: Any) -> dict[str, float]:
    """Where the true value stands among all values of its attribute: the share of the others that are less likely, 0.5 by chance.

    Mean over the targets' questions in held-out wording (``rank``), and over their held-out statements (``rank_statement``).
    """
    from unlearn.assembly import cache_folder
    from unlearn.attacks.facts import options_of, pools
    from unlearn.evaluation.scoring import score
    from unlearn.measuring import reader_of
    from unlearn.registry import find
    from unlearn.subject import find_subject, load_models

    source = find("source", config.data.source).load()(config.data, seed=config.seed, cache=cache_folder(config))
    data, models = source.load(), load_models(find_subject(str(path)), config)
    reader, values = reader_of(config, source, data, models), pools(data)
    facts = {(row.entity, row.attribute): row.answer for row in data.evaluation["forget_paraphrased"]}
    found: dict[str, list[float]] = {"rank": [], "rank_statement": []}
    for row in (*data.evaluation["forget_paraphrased"], *data.latent["forget"]):
        if row.kind not in ("qa", "statement") or (row.entity, row.attribute) not in facts:
            continue
        options = [replace(row, answer=value, mentions=()) for value in options_of(row, values)]
        own, *others = score(models.lm, reader.tokens(options), reader).nll().tolist()
        share = np.mean([(own < other) + 0.5 * (own == other) for other in others])
        found["rank" if row.kind == "qa" else "rank_statement"].append(float(share))
    return {f"forget/{name}": float(np.mean(each)) for name, each in found.items() if each}


def make(cell: Cell, overrides: list[str]) -> dict[str, float]:
    """Train, measure, attack."""
    from unlearn.attack import attack
    from unlearn.config.load import load_study
    from unlearn.run import execute

    place = [f"study=world_erasure/seed{cell.seed}_set{cell.forget_set}", f"seed={cell.seed}", f"data.forget_set={cell.forget_set}"]
    (config,) = (c for c in load_study(STUDY, [*place, *overrides]) if c.name.split("/")[-1] == cell.setting)
    path = execute(config, go_on=True)
    attack(str(path), cell.suite, [ATTACKS])
    found: dict[str, Any] = json.loads((path / "results.json").read_text(encoding="utf-8")) | ranks(path, config)
    return {key: float(f"{value:.6g}") for key, value in found.items() if isinstance(value, int | float) and "@" not in key}


SHOWN = {
    "forget": "forget/accuracy",
    "other words": "forget/accuracy_paraphrased",
    "unknown": "forget/refusal_rate_paraphrased",
    "rank": "forget/rank",
    "retain": "retain/accuracy",
    "unseen": "retain/accuracy_unseen",
    "ppl / base": "generic/perplexity_ratio",
    "C2ST": "latent/c2st_auc",
    "null": "latent/c2st_null",
}
GETS = (
    "relearn",
    "relearn_half",
    "relearn_benign",
    "relearn_lora",
    "patch",
    "steer",
    "quantise",
    "probe",
    "prompt",
    "sample",
    "search",
    "lens",
)
COST = {"CPU s/step": "cost/step_cpu_seconds", "CPU s": "cost/train_cpu_seconds"}


def cell_text(found: dict[str, float], key: str) -> str:
    """One entry of a table."""
    if key == "generic/perplexity_ratio":
        return f"{found['generic/perplexity'] / found['generic/perplexity_base']:.3f}"
    if key == "latent/c2st_null":
        return f"{found['latent/c2st_null_low']:.2f}-{found['latent/c2st_null_high']:.2f}"
    return f"{found[key]:.2f}" if key in found else "–"


def attacked(found: dict[str, float], name: str) -> str:
    """What an attack gets out of the targets, out of its control, and out of the gold model's targets, each at its best setting."""
    target = next((found[key] for key in (f"attack/{name}_recovery", f"attack/{name}_accuracy") if key in found), None)
    gold = f" ({found[f'attack/{name}_gold']:.2f})" if f"attack/{name}_gold" in found else ""
    return "–" if target is None else f"{target:.2f} / {found[f'attack/{name}_control']:.2f}{gold}"


def table(cells: list[Cell], names: tuple[str, ...]) -> str:
    """A line for each cell that is done."""
    head = ["setting", "world", "set", *SHOWN, *(name.replace("_", " ") for name in names), *COST]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for cell in cells:
        file = RESULTS / f"{cell.label}.json"
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            shown = [cell_text(found, key) for key in SHOWN.values()] + [attacked(found, name) for name in names]
            shown = [cell.setting, str(cell.seed), str(cell.forget_set), *shown, *(cell_text(found, key) for key in COST.values())]
            lines.append(f"| {' | '.join(shown)} |")
    open_cells = [cell.label for cell in cells if not (RESULTS / f"{cell.label}.json").exists()]
    said = f"\nDone: {len(cells) - len(open_cells)} of {len(cells)} cells." + (f" Open: {', '.join(open_cells)}." if open_cells else "")
    return "\n".join(lines) + "\n" + said + "\n"


def write() -> None:
    """The tables in README.md."""
    parts = {
        "fresh": table([cell for cell in CELLS if (cell.seed, cell.forget_set) != TUNED], GETS),
        "tuned": table([cell for cell in CELLS if (cell.seed, cell.forget_set) == TUNED], tuple(FEW.split(","))),
    }
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, made in parts.items():
        before, _, rest = text.partition(BEGIN.format(name))
        text = f"{before}{BEGIN.format(name)}{made}{END.format(name)}{rest.partition(END.format(name))[2]}"
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    """Make what is missing, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="PATTERN", help="cells, such as 'sae_erase_seed1_*'; may be repeated")
    parser.add_argument("--most", type=int, default=len(CELLS), help="most new cells")
    parser.add_argument("--table", action="store_true", help="run nothing, read what is there")
    parser.add_argument("overrides", nargs="*", help="settings of every run, key=value")
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    wanted = [cell for cell in CELLS if any(fnmatch(cell.label, pattern) for pattern in given.only or ["*"])]
    missing = [cell for cell in wanted if not (RESULTS / f"{cell.label}.json").exists()]
    for cell in [] if given.table else missing[: given.most]:
        found = make(cell, given.overrides)
        (RESULTS / f"{cell.label}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(cell.label, flush=True)
    write()


if __name__ == "__main__":
    main()
