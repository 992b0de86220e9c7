"""One cell: train, measure, attack; everything is kept as it comes, so that an interrupted cell goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell

from unlearn.config.schema import RunConfig

HERE = Path(__file__).parent
STUDY, GRIDS, WIDER = HERE / "erasure.yaml", HERE.parent / "world_attacks" / "attacks.yaml", HERE / "attacks.yaml"
REQUESTS = 3
LONG = 100
"""Relearning for more steps than that is an attack of its own, ``relearn_long``."""
KEPT = ("retain/accuracy", "retain/accuracy_unseen", "forget/accuracy", "generic/perplexity", "generic/perplexity_base")
"""Results of each of several requests that are kept."""


def config_of(cell: Cell, words: list[str], part: str = "") -> RunConfig:
    """The run of a cell; ``part`` names one of several."""
    from unlearn.config.load import load_study

    study = f"study=world_erasure/seed{cell.seed}_set{cell.forget_set}{part}"
    place = [study, f"seed={cell.seed}", f"data.forget_set={cell.forget_set}", *words]
    (config,) = (c for c in load_study(STUDY, place) if c.name.split("/")[-1] == cell.setting)
    return config


def attacks_of(cell: Cell) -> list[Path]:
    """Grids of the attacks that a cell meets: those of experiments/world_attacks, wider ones in the main comparison."""
    return [GRIDS, WIDER] if cell.suite == "full" else [GRIDS]


def measured(cell: Cell, words: list[str]) -> dict[str, float]:
    """All results of a cell."""
    found = requests(cell, words) if cell.setting.startswith("sequence") else one_request(cell, words)
    return {key: float(f"{value:.6g}") for key, value in found.items() if isinstance(value, int | float) and "@" not in key}


def one_request(cell: Cell, words: list[str]) -> dict[str, Any]:
    """A run, attacked where it lies."""
    from unlearn.attack import attack
    from unlearn.run import execute

    config = config_of(cell, words)
    path = execute(config, go_on=True)
    attack(str(path), cell.suite, attacks_of(cell))
    found = everything(path, str(path), None, config)
    return found | inside(found)


def requests(cell: Cell, words: list[str]) -> dict[str, Any]:
    """Forget sets 0, 1, 2 in three runs, each from the weights that the one before ended with; then all of their targets at once.

    The command for each is ``unlearn run ... model.path=EXPORTED``, and ``unlearn export RUN EXPORTED`` in between.
    """
    from unlearn.assembly import cache_folder
    from unlearn.attack import attack
    from unlearn.benchmark import evaluate
    from unlearn.config.fingerprint import plain
    from unlearn.export import export
    from unlearn.registry import find
    from unlearn.run import execute
    from unlearn.tracking.exported import PROVENANCE

    first, found = config_of(cell, words), dict[str, Any]()
    n_forget, n_retain = first.data.n_forget, first.data.n_retain  # type: ignore[attr-defined]
    model: Path | None = None
    for number in range(REQUESTS):
        data = [f"data.forget_set={number}", f"data.forgotten_sets={list(range(number))}", f"data.n_retain={n_retain - number * n_forget}"]
        start = [] if model is None else [f"model.path={model}"]
        path = execute(config_of(cell, [*words, *data, *start], f"/request{number + 1}"), go_on=True)
        model = path.parent / f"{cell.setting}_exported"
        if not (model / PROVENANCE).is_file():
            export(str(path), model)
        results = json.loads((path / "results.json").read_text(encoding="utf-8"))
        found |= {f"request{number + 1}/{key}": results[key] for key in KEPT if key in results}
    whole = config_of(cell, [*words, f"data.n_forget={REQUESTS * n_forget}", f"data.n_retain={n_retain - (REQUESTS - 1) * n_forget}"])
    source = find("source", whole.data.source).load()(whole.data, seed=whole.seed, cache=cache_folder(whole))
    assets, given = source.assets(progress=False), plain(whole)
    base, sections = str(assets.model), {key: given[key] for key in ("seed", "data", "latents", "evaluation", "trainer")}
    sections |= {
        "sae": {**given["sae"], "path": str(assets.sae), "heldout_path": str(assets.heldout_sae)},
        "cache": str(cache_folder(whole)),
    }
    out = model.parent / f"{cell.setting}_measured"
    done = evaluate(str(model), ["world"], [sections], out=out, base=base)
    attack(str(model), cell.suite, [*attacks_of(cell), sections], out=out / "attacks", base=base)
    own = replace(whole, model=replace(whole.model, path=str(model)), sae=replace(whole.sae, path=str(assets.sae)))
    found |= json.loads((done.folders["world"] / "results.json").read_text(encoding="utf-8"))
    found["cost/train_cpu_seconds"] = sum(_cpu_seconds(model.parents[1] / f"request{n + 1}" / cell.setting) for n in range(REQUESTS))
    found |= everything(out / "attacks", str(model), base, own)
    return found | inside(found)


def _cpu_seconds(path: Path) -> float:
    return float(json.loads((path / "results.json").read_text(encoding="utf-8"))["cost/train_cpu_seconds"])


def everything(folder: Path, model: str, base: str | None, config: RunConfig) -> dict[str, Any]:
    """What the results of an attacked model say, and what is worked out beside them."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for name, new, chosen in (("relearn", "relearn", lambda step: step <= LONG), ("relearn", "relearn_long", lambda step: step > LONG)):
        found |= split(folder, name, new, chosen, config)
    return found | ranks(model, base, config)


def split(folder: Path, name: str, new: str, chosen: Callable[[int], bool], config: RunConfig) -> dict[str, float]:
    """The results of an attack by its settings of some numbers of steps alone, as those of an attack ``new``."""
    from unlearn.attacks.base import Outcome
    from unlearn.registry import find
    from unlearn.report.attacks import curve_places
    from unlearn.tracking.files import read_json

    record, measure = read_json(folder / "attacks" / f"{name}.json"), find("attack", name).load().measure
    whole = Outcome.of_record(record["outcome"])
    at = [i for i, step in enumerate(curve_places(whole.cells)) if chosen(step)]
    if not at:
        return {}
    part = replace(whole, cells=tuple(whole.cells[i] for i in at), target=whole.target[at], control=whole.control[at], extra={})
    return part.results(f"attack/{new}", measure, config.evaluation.bootstrap, config.seed)


def inside(found: Mapping[str, Any]) -> dict[str, float]:
    """``latent/c2st_inside``: share of the places (blocks, answer token, SAEs) whose area lies where that of unknown people does."""
    low, high = found.get("latent/c2st_null_low"), found.get("latent/c2st_null_high")
    areas = [value for key, value in found.items() if key.startswith("latent/c2st_auc") and "/ci_" not in key]
    return {"latent/c2st_inside": float(np.mean([low <= area <= high for area in areas]))} if areas and low is not None else {}


def ranks(model: str, base: str | None, config: RunConfig) -> dict[str, float]:
    """Where the true value stands among all values of its attribute: the share of the others that are less likely, 0.5 by chance.

    Mean over the targets' questions in held-out wording (``rank``), over their held-out statements (``rank_statement``), and over sentences
    in held-out wording that go on with what somebody of their profession does (``rank_indirect``): it follows from the fact, but is not it.
    """
    from unlearn.assembly import cache_folder
    from unlearn.attacks.facts import options_of, pools
    from unlearn.evaluation.scoring import score
    from unlearn.measuring import reader_of
    from unlearn.registry import find
    from unlearn.subject import find_subject, load_models
    from unlearn.world.rows import RowMaker
    from unlearn.world.templates import MENTIONS, VERBS

    source = find("source", config.data.source).load()(config.data, seed=config.seed, cache=cache_folder(config))
    data, models = source.load(), load_models(find_subject(model, base), config)
    reader, values = reader_of(config, source, data, models), {**pools(data), "mention": tuple(VERBS.values())}
    facts = {(row.entity, row.attribute) for row in data.evaluation["forget_paraphrased"]}
    indirect = RowMaker(source.encyclopaedia(), 0).mentions(source.roles().forget, (len(MENTIONS) - 1,))
    direct = [row for row in (*data.evaluation["forget_paraphrased"], *data.latent["forget"]) if (row.entity, row.attribute) in facts]
    names = {"qa": "rank", "statement": "rank_statement", "mention": "rank_indirect"}
    found: dict[str, list[float]] = {name: [] for name in names.values()}
    for row in (row for row in (*direct, *indirect) if row.kind in names):
        options = [replace(row, answer=value, mentions=()) for value in options_of(row, values)]
        own, *others = score(models.lm, reader.tokens(options), reader).nll().tolist()
        found[names[row.kind]].append(float(np.mean([(own < other) + 0.5 * (own == other) for other in others])))
    return {f"forget/{name}": float(np.mean(each)) for name, each in found.items() if each}
