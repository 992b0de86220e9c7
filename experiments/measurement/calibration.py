"""How often each test of indistinguishability raises an alarm where there is nothing to find, and where there is something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import binomtest, ks_2samp, kstest

from unlearn.assembly import cache_folder
from unlearn.config.schema import RunConfig, SAEConfig
from unlearn.data.tokenize import pad_id, tokenize_rows
from unlearn.evaluation.latent import LatentRows
from unlearn.evaluation.places import REFITS, Place, places, read_places
from unlearn.functional.indistinguishable import (
    LEVEL,
    Sample,
    auc_resamples,
    ks_findings,
    ks_interval,
    ks_p_values,
    ks_statistics,
    mahalanobis_percentiles,
    mean_interval,
    student_interval,
)
from unlearn.functional.statistics import bootstrap_interval, c2st_auc, c2st_null, fit_probe, mmd_permutation
from unlearn.models.decoder import blocks_of
from unlearn.models.lm import load_lm
from unlearn.models.sae import load_sae
from unlearn.registry import find
from unlearn.world.rows import RowMaker

DRAWS, KNOWN_DRAWS = 200, 20
"""Resamplings of unknown against unknown entities, and of known against unknown ones."""

TARGETS = 10
"""Entities on the target's side."""

WHERE = ("", "@layer3", "@answer", "@sae", "@heldout_sae")
"""Suffixes of the places, as the result keys have them."""

Found = dict[str, float]
Activations = dict[str, tuple[np.ndarray, np.ndarray]]
"""(activations [N, S], entity of each row) by group."""


def read(config: RunConfig) -> dict[str, Activations]:
    """Activations of every group at every place, under the original model of the world; read once."""
    cache = cache_folder(config)
    source: Any = find("source", config.data.source, "data.source").load()(config.data, seed=config.seed, cache=cache)
    assets, data = source.assets(progress=False), source.load()
    lm, tokenizer = load_lm(config.model, assets.model)
    sae, second = load_sae(config.sae, assets.sae), load_sae(SAEConfig(path=str(assets.heldout_sae)), None)
    rows = {**data.latent, "retain": RowMaker(source.encyclopaedia(), config.seed).recognition(source.roles().retain)}
    every = places(max(sae.layers), len(blocks_of(lm)), sae, second)
    groups = {
        name: LatentRows.of(
            tokenize_rows(list(mine), tokenizer, source.prompt_format, config.data.max_length), [row.entity for row in mine]
        )
        for name, mine in rows.items()
    }
    hidden = {g: read_places(lm, r.tokens, every, config.evaluation.batch_size, pad_id(tokenizer)) for g, r in groups.items()}
    chosen: list[Place] = [place for place in every if place.suffix in WHERE]
    return {place.suffix: {g: (place.of(hidden[g]), groups[g].entities) for g in groups} for place in chosen}


def some(x: np.ndarray, entities: np.ndarray, names: np.ndarray) -> Sample:
    """The rows of the named entities."""
    inside = np.isin(entities, names)
    return Sample(x[inside], entities[inside])


def p_unknown_misses(a: Sample, b: Sample, probe: Any, n: int, seed: int) -> tuple[bool, float]:
    """(the interval of the targets' mean P(unknown) misses the others' mean, targets' mean)."""
    of_a, of_b = (probe.predict_proba(side.x_NS)[:, 1] for side in (a, b))
    low, high = bootstrap_interval(of_a, n, seed, groups=a.groups_N)
    return not low <= of_b.mean() <= high, float(of_a.mean())


def one(a: Sample, b: Sample, more: np.ndarray, probe: Any, config: RunConfig, seed: int) -> Found:
    """What every test says about a pair of groups; keys in capitals are alarms (0 or 1). ``more``: null draws beyond those configured."""
    c = config.evaluation
    null = more[: c.null_draws]
    x, y = np.concatenate([a.x_NS, b.x_NS]), np.repeat([1, 0], [len(a.x_NS), len(b.x_NS)])
    area = c2st_auc(x, y, np.concatenate([a.groups_N, b.groups_N]), seed)
    outside, bell = np.quantile(null, [0.025, 0.975]), student_interval(null.tolist())
    wide = np.quantile(more, [0.025, 0.975])
    refits = max(2, c.bootstrap // REFITS)
    areas = auc_resamples(a, b, refits, seed)
    plain = np.quantile(areas, [0.025, 0.975])
    low, high = student_interval(areas)
    _, p_mmd = mmd_permutation(a.x_NS, b.x_NS, a.groups_N, b.groups_N, n=c.permutations, seed=seed)
    share, _ = ks_findings(a, b)
    of_a, of_b = a.means(), b.means()
    moves = np.flatnonzero(np.ptp(np.concatenate([of_a, of_b]), axis=0) > 0)
    feature = [np.random.default_rng(seed).choice(moves)]
    p_feature = ks_p_values(of_a[:, feature], of_b[:, feature], ks_statistics(of_a[:, feature], of_b[:, feature]))[0]
    ranks = mahalanobis_percentiles(a, b, seed)
    around, resampled = mean_interval(ranks), bootstrap_interval(ranks, c.bootstrap, seed)
    missed, p_mean = p_unknown_misses(a, b, probe, c.bootstrap, seed)
    return {
        "c2st": area,
        "C2ST outside its null interval": float(not outside[0] <= area <= outside[1]),
        "C2ST above its null interval": float(area > outside[1]),
        "C2ST outside Student's interval of the null draws": float(not bell[0] <= area <= bell[1]),
        "C2ST outside the interval of four times as many null draws": float(not wide[0] <= area <= wide[1]),
        "C2ST bootstrap interval misses 0.5": float(not low <= 0.5 <= high),
        "C2ST bootstrap interval above 0.5": float(low > 0.5),
        "C2ST plain percentiles miss 0.5": float(not plain[0] <= 0.5 <= plain[1]),
        "p mmd": p_mmd,
        "MMD p-value <= 0.05": float(p_mmd <= LEVEL),
        "p ks of one feature": float(p_feature),
        "KS finds any feature": float(share > 0),
        "KS share's interval above 0": float(ks_interval(a, b, refits, seed)[0] > 0),
        "p mahalanobis of one entity": float(np.random.default_rng(seed).choice(ranks)),
        "mahalanobis": float(ranks.mean()),
        "Mahalanobis interval misses 0.5": float(not around[0] <= 0.5 <= around[1]),
        "Mahalanobis bootstrap interval misses 0.5": float(not resampled[0] <= 0.5 <= resampled[1]),
        "p_unknown": p_mean,
        "P(unknown) interval misses the others' mean": float(missed),
    }


def place_results(groups: Activations, config: RunConfig, seed: int) -> dict[str, Any]:
    """Rates and p-values at one place.

    The held-out strangers are halved. One half gives the null interval of the C2ST and the unknown side of the probe, the other half is
    resampled: ten of it against the rest of it, or ten known entities that the probe has not seen against it without ten.
    """
    x, entities = groups["unknown"]
    names = np.unique(entities)
    names = np.random.default_rng(seed).permutation(names)
    kept, tested = names[: len(names) // 2], names[len(names) // 2 :]
    other_half = some(x, entities, kept)
    draws = config.evaluation.null_draws
    more = c2st_null(other_half.x_NS, other_half.groups_N, TARGETS, len(kept) - TARGETS, draws=4 * draws, seed=config.seed)
    null = more[:draws]
    known_x, _ = groups["known"]
    probe = fit_probe(np.concatenate([known_x, other_half.x_NS]), np.repeat([0, 1], [len(known_x), len(other_half.x_NS)]))
    facts_x, facts_entities = (np.concatenate([groups[g][i] for g in ("forget", "retain")]) for i in (0, 1))
    like, unlike = [], []
    for draw in range(DRAWS):
        rng = np.random.default_rng([seed, draw])
        order = rng.permutation(tested)
        a, b = some(x, entities, order[:TARGETS]), some(x, entities, order[TARGETS:])
        like.append(one(a, b, more, probe, config, 1000 + draw))
        if draw < KNOWN_DRAWS:
            targets = some(facts_x, facts_entities, rng.permutation(np.unique(facts_entities))[:TARGETS])
            unlike.append(one(targets, b, more, probe, config, 1000 + draw))
    return {
        "unknown against unknown": summary(like, null),
        "known against unknown": summary(unlike, null),
        "strangers": len(tested),
        "features": x.shape[1],
        "null interval": np.quantile(null, [0.025, 0.975]).tolist(),
    }


def summary(draws: list[Found], null: np.ndarray) -> dict[str, Any]:
    """Alarm rates with binomial intervals, means of the statistics, and uniformity of the p-values."""
    columns = {key: np.array([draw[key] for draw in draws]) for key in draws[0]}
    found: dict[str, Any] = {"draws": len(draws), "rates": {}, "means": {}, "uniform": {}}
    same = ks_2samp(columns["c2st"], null)
    found["areas like the null draws"] = {"p": float(same.pvalue), "statistic": float(same.statistic)}
    for key, values in columns.items():
        if key[0].isupper():
            interval = binomtest(int(values.sum()), len(values)).proportion_ci()
            found["rates"][key] = [float(values.mean()), float(interval.low), float(interval.high)]
        elif key.startswith("p "):
            test = kstest(values, "uniform")
            found["uniform"][key[2:]] = {
                "p": float(test.pvalue),
                "statistic": float(test.statistic),
                "at most 0.05": float((values <= LEVEL).mean()),
            }
        else:
            found["means"][key] = float(values.mean())
    return found


def calibration(config: RunConfig, done: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Results of every place; ``done`` are not made again, ``keep`` is called after each."""
    missing = [suffix for suffix in WHERE if (suffix or "hooked block") not in done]
    activations = read(config) if missing else {}
    for suffix in missing:
        done[suffix or "hooked block"] = place_results(activations[suffix], config, config.seed)
        keep(done)
    return done
