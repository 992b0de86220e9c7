"""sae_erase on worlds and forget sets that it was not tuned on, beside the gold model; on the one that it was, each term turned off or on.

    python experiments/world_erasure/reproduce.py [--only PATTERN] [--most N] [--table] [--results FOLDER] [key=value ...]

A cell is a setting of erasure.yaml on one world and one forget set: results/<setting>_seed<S>_set<F>.json (``cells.py`` lists them). A cell
whose file is there and whole is not made again, whoever made it; an interrupted one goes on after the last attack. ``--only`` takes
patterns of cells (``sae_erase_seed1_*``), ``--list`` says which are open, ``--most`` ends after so many new ones, ``--table`` makes the
tables in README.md and the figures in results/ from what is there. Attacks have the grids of experiments/world_attacks/attacks.yaml and
attacks.yaml.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from cells import CELLS, MORE, PARTS, Cell
from goals import goals
from measure import measured
from pictures import averaged, beside_gold, draw, recovered

HERE = Path(__file__).parent
BEGIN, END = "<!-- {} -->\n", "<!-- end of {} -->\n"
WHOLE = ("attack/relearn_long_control", "attack/relearn_statements_control", "latent/c2st_inside", "forget/rank_indirect")
"""Results that a cell of the main comparison must have to count as done."""

SHOWN = {
    "forget": "forget/accuracy",
    "other words": "forget/accuracy_paraphrased",
    "unknown": "forget/refusal_rate_paraphrased",
    "rank": "forget/rank",
    "statement": "forget/rank_statement",
    "indirect": "forget/rank_indirect",
    "retain": "retain/accuracy",
    "unseen": "retain/accuracy_unseen",
    "ppl / base": "generic/perplexity_ratio",
    "C2ST": "latent/c2st_auc",
    "null": "latent/c2st_null",
    "inside": "latent/c2st_inside",
}
GETS = (
    *("relearn", "relearn_long", "relearn_statements", "relearn_half", "relearn_benign", "relearn_lora"),
    *("patch", "steer", "quantise", "probe", "prompt", "sample", "search", "lens"),
)
COST = {"CPU s/step": "cost/step_cpu_seconds", "CPU s": "cost/train_cpu_seconds"}
REQUEST = {"forget": "forget/accuracy", "retain": "retain/accuracy", "unseen": "retain/accuracy_unseen"}

Results = Mapping[str, float]


def value_of(found: Results, key: str) -> float | None:
    """A result, or what is worked out of two."""
    if key == "generic/perplexity_ratio":
        bases = [found[name] for name in ("request1/generic/perplexity_base", "generic/perplexity_base") if name in found]
        return found["generic/perplexity"] / bases[0] if bases and "generic/perplexity" in found else None
    return found.get(key)


def text_of(rows: Sequence[Results], key: str) -> str:
    """One entry of a table: the value, or the mean over cells with its interval."""
    if key == "latent/c2st_null":
        ends = [[r[f"latent/c2st_null_{end}"] for r in rows if f"latent/c2st_null_{end}" in r] for end in ("low", "high")]
        return "-".join(f"{averaged(values)[0]:.2f}" for values in ends) if all(ends) else "–"
    return _interval([v for r in rows if (v := value_of(r, key)) is not None], 3 if key == "generic/perplexity_ratio" else 2)


def _interval(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return "–"
    mean, low, high = averaged(values)
    return f"{mean:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if len(values) > 1 else "")


def attacked(rows: Sequence[Results], name: str) -> str:
    """What an attack gets out of the targets, out of its control, and out of the gold model's targets, each at its best setting."""
    targets = [v for r in rows if (v := recovered(r, name)) is not None]
    controls, golds = ([r[key] for r in rows if (key := f"attack/{name}_{side}") in r] for side in ("control", "gold"))
    if not targets:
        return "–"
    return f"{_interval(targets)} / {_interval(controls)}" + (f" ({averaged(golds)[0]:.2f})" if golds else "")


def table(cells: Sequence[Cell], found: Mapping[Cell, Results], names: Sequence[str]) -> str:
    """A line for each cell that is there; before them the mean of each setting that has several."""
    head = ["setting", "world", "set", *SHOWN, *(name.replace("_", " ") for name in names), *COST]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    there = [cell for cell in cells if cell in found]
    settings = dict.fromkeys(cell.setting for cell in there)
    groups = {setting: [cell for cell in there if cell.setting == setting] for setting in settings}
    means = [(f"**{setting}**", f"mean of {len(own)}", "", own) for setting, own in groups.items() if len(own) > 1]
    for setting, world, forget_set, own in [*means, *((c.setting, str(c.seed), str(c.forget_set), [c]) for c in there)]:
        rows = [found[cell] for cell in own]
        shown = [text_of(rows, key) for key in SHOWN.values()] + [attacked(rows, name) for name in names]
        lines.append(f"| {' | '.join([setting, world, forget_set, *shown, *(text_of(rows, key) for key in COST.values())])} |")
    missing = [cell.label for cell in cells if not whole(cell, found.get(cell))]
    said = f"Done: {len(cells) - len(missing)} of {len(cells)} cells."
    said += f" Open, or without some of the measurements: {', '.join(missing)}." if missing else ""
    return "\n".join(lines) + f"\n\n{said}\n"


def requests(found: Mapping[Cell, Results]) -> str:
    """What was kept after each of several requests."""
    rows = [(cell, r) for cell, r in found.items() if "request1/retain/accuracy" in r]
    if not rows:
        return "No sequence of requests is done.\n"
    lines = [f"| setting | world | request | {' | '.join(REQUEST)} |", "|---|---:|---:|" + "---:|" * len(REQUEST)]
    for cell, r in rows:
        for number in (1, 2, 3):
            shown = " | ".join(f"{r[f'request{number}/{key}']:.2f}" for key in REQUEST.values())
            lines.append(f"| {cell.setting} | {cell.seed} | {number} | {shown} |")
    return "\n".join(lines) + "\n"


def whole(cell: Cell, found: Results | None) -> bool:
    """Whether a cell has all that it should."""
    return found is not None and (cell.suite != "full" or all(key in found for key in WHOLE))


def read(folder: Path) -> dict[Cell, Results]:
    """The cells that are there, each with the attacks on its gold model."""
    files = {cell: folder / f"{cell.label}.json" for cell in CELLS}
    return beside_gold({cell: json.loads(file.read_text(encoding="utf-8")) for cell, file in files.items() if file.exists()})


def write(folder: Path) -> None:
    """The tables in README.md (of this folder's results alone), and the figures."""
    found = read(folder)
    draw(found, folder)
    if folder != HERE / "results":
        return
    parts = {name: table(cells, found, MORE if name == "tuned" else GETS) for name, cells in PARTS.items()} | {
        "requests": requests(found),
        "goals": goals(found),
    }
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, made in parts.items():
        before, _, rest = text.partition(BEGIN.format(name))
        text = f"{before}{BEGIN.format(name)}{made}{END.format(name)}{rest.partition(END.format(name))[2]}"
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    """Make what is missing, then the tables and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="PATTERN", help="cells, such as 'sae_erase_seed1_*'; may be repeated")
    parser.add_argument("--most", type=int, default=len(CELLS), help="most new cells")
    parser.add_argument("--list", action="store_true", help="say which cells are open, and end")
    parser.add_argument("--table", action="store_true", help="run nothing, read what is there")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the files are (elsewhere, README.md is left alone)")
    parser.add_argument("overrides", nargs="*", help="settings of every run, key=value")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    done = read(given.results)
    wanted = [cell for cell in CELLS if any(fnmatch(cell.label, pattern) for pattern in given.only or ["*"])]
    missing = [cell for cell in wanted if not whole(cell, done.get(cell))]
    if given.list:
        print("\n".join(cell.label for cell in missing))
        return
    for cell in [] if given.table else missing[: given.most]:
        text = json.dumps(measured(cell, given.overrides), indent=1, sort_keys=True) + "\n"
        (given.results / f"{cell.label}.json").write_text(text, encoding="utf-8")
        print(cell.label, flush=True)
    write(given.results)


if __name__ == "__main__":
    main()
