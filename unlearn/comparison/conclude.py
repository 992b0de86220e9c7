"""From the files of a ledger to its summary: means, intervals, paired tests, ranks, the Pareto front."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from unlearn.comparison.ledger import Ledger
from unlearn.comparison.plan import Plan
from unlearn.functional.objective import AXES, LOWER_IS_BETTER
from unlearn.functional.pairing import dominates, holm, mean_ranks, nested_interval, paired_p, pareto_front
from unlearn.registry import entries

RESAMPLES = 2000
SCORE = "score"
COLUMNS = ("forget/accuracy", "forget/accuracy_paraphrased", "retain/accuracy", "retain/accuracy_unseen", "generic/perplexity") + (
    "latent/c2st_auc",
)
"""Results whose means over seeds the summary holds beside the axes."""

Tests = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Files of the tests by method and seed."""


def conclude(plan: Plan) -> dict[str, Any]:
    """The summary of what is in the ledger so far.

    For every method with a test: what its tuning took and chose, and what made each test; means with intervals of the score and of the
    five axes, over seeds, and of the main results, over seeds and the entities within them; the p-value of a paired test against the
    reference, raw and adjusted by Holm over the methods; the mean rank of the score; whether it is on the Pareto front of the axes, and
    who dominates it. Tests, ranks and front are of tuned methods with all seeds; rows of reference and unfinished methods have none.
    """
    ledger = Ledger(plan.ledger)
    tests: Tests = {method: found for method in plan.methods if (found := _tests(ledger, method, plan.seeds))}
    rows = {method: _row(ledger, method, found, plan.seeds) for method, found in tests.items()}
    whole = [method for method in tests if plan.tuned(method) and len(tests[method]) == len(plan.seeds)]
    _add_tests(rows, tests, whole, plan.reference)
    _add_ranks(rows, tests, whole, plan.seeds)
    _add_front(rows, whole)
    tune, left = ledger.missing(plan)
    trained = [method for method in plan.methods if plan.tuned(method)]
    return {
        "name": plan.name,
        "reference": plan.reference,
        "seeds": list(plan.seeds),
        "trials": plan.trials,
        "attacks": plan.suite,
        "methods": rows,
        "progress": {
            "tuned": len(trained) - len(tune),
            "to_tune": tune,
            "tests": len(plan.methods) * len(plan.seeds) - len(left),
            "tests_in_all": len(plan.methods) * len(plan.seeds),
            "complete": whole,
        },
        "cost": _cost(ledger, plan, tests),
    }


def _tests(ledger: Ledger, method: str, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    return {seed: record for seed in seeds if (record := ledger.test(method, seed))}


def _row(ledger: Ledger, method: str, tests: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """What the summary says about one method by itself."""
    records = list(tests.values())
    tuning = ledger.tuning(method)
    entry = entries("method").get(method)
    found: dict[str, Any] = {
        "seeds": list(tests),
        "complete": len(tests) == len(seeds),
        "tuned": bool(tuning),
        "family": "" if entry is None else entry.facts.get("family", ""),
        "params": records[0]["params"],
        "tuning_score": tuning["best"]["score"] if tuning else None,
        "tuning": _budget(tuning["trials"]) if tuning else None,
        "made": [{"seed": seed, **record.get("made", {})} for seed, record in tests.items()],
        "damaged": sum(record["harm"] > 0 for record in records),
        "verdicts": [record["verdict"] for record in records],
        SCORE: _interval([[record[SCORE]] for record in records]),
    }
    found |= {axis: _interval([[_number(record["axes"].get(axis))] for record in records]) for axis in AXES}
    found["results"] = {key: _interval(values) for key in COLUMNS if (values := _values(key, records))}
    return found


def _budget(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the tuning of a method took: trials by how they ended, and CPU seconds of those that were timed."""
    seconds = [trial["cpu_seconds"] for trial in trials if "cpu_seconds" in trial]
    return {"trials": dict(Counter(trial["state"] for trial in trials)), "cpu_seconds": math.fsum(seconds) if seconds else None}


def _interval(nested: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean over seeds of the mean over entities, with its interval."""
    low, high = nested_interval(nested, RESAMPLES, seed=0)
    return {"mean": _mean([_mean(row) for row in nested]), "ci_low": low, "ci_high": high}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else math.nan


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) or value in ("inf", "-inf") else math.nan


def _values(key: str, records: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """A result by seed and entity where entities have values, else by seed; empty where no seed has it."""
    if all(key in record["entities"] for record in records):
        return [[float(value) for _, value in sorted(record["entities"][key].items())] for record in records]
    return [[_number(record["results"].get(key))] for record in records] if any(key in record["results"] for record in records) else []


def _add_tests(rows: dict[str, dict[str, Any]], tests: Tests, whole: Sequence[str], reference: str) -> None:
    """``p`` and ``p_holm`` against the reference: of the score and the axes over seeds, of results over seeds and entities."""
    others = [method for method in whole if method != reference]
    if reference not in whole or not others:
        return
    records = {method: list(tests[method].values()) for method in whole}
    for name in (SCORE, *AXES):
        values = {method: [[_of_record(name, record)] for record in found] for method, found in records.items()}
        _add_p([rows[method][name] for method in others], [values[method] for method in others], values[reference])
    for key in (key for key in COLUMNS if key in rows[reference]["results"]):
        shared = [method for method in others if key in rows[method]["results"]]
        cells = [rows[method]["results"][key] for method in shared]
        _add_p(cells, [_values(key, records[method]) for method in shared], _values(key, records[reference]))


def _add_p(cells: Sequence[dict[str, float]], values: Sequence[list[list[float]]], reference: list[list[float]]) -> None:
    """Test each of ``values`` against ``reference``, adjust over all of them, and add both numbers to its cell."""
    raw = [paired_p(mine, reference) for mine in values]
    for cell, p, adjusted in zip(cells, raw, holm(raw), strict=True):
        cell |= {"p": p, "p_holm": adjusted}


def _of_record(name: str, record: Mapping[str, Any]) -> float:
    return _number(record[SCORE] if name == SCORE else record["axes"].get(name))


def _add_ranks(rows: dict[str, dict[str, Any]], tests: Tests, whole: Sequence[str], seeds: Sequence[int]) -> None:
    if not whole:
        return
    scores = [[_of_record(SCORE, tests[method][seed]) for seed in seeds] for method in whole]
    for method, rank in zip(whole, mean_ranks(scores), strict=True):
        rows[method]["rank"] = rank


def _add_front(rows: dict[str, dict[str, Any]], whole: Sequence[str]) -> None:
    """Pareto front over the means of the axes that were measured of any method."""
    sides = [axis for axis in AXES if any(rows[method][axis]["mean"] == rows[method][axis]["mean"] for method in whole)]
    points = {m: [(-1 if axis in LOWER_IS_BETTER else 1) * rows[m][axis]["mean"] for axis in sides] for m in whole}
    for method, front in zip(whole, pareto_front(list(points.values())), strict=True):
        rows[method]["pareto"] = front
        rows[method]["dominated_by"] = [other for other in whole if dominates(points[other], points[method])]


def _cost(ledger: Ledger, plan: Plan, tests: Tests) -> dict[str, float]:
    """CPU seconds that the files in the ledger took."""
    tunings = [record for method in plan.methods if (record := ledger.tuning(method))]
    records = [record for found in tests.values() for record in found.values()]
    trials = [trial["cpu_seconds"] for record in tunings for trial in record["trials"] if "cpu_seconds" in trial]
    runs, attacks = ([_number(record["cost"][key]) for record in records] for key in ("run_cpu_seconds", "attack_cpu_seconds"))
    return {
        "tuning_cpu_seconds": math.fsum(trials),
        "trial_cpu_seconds_mean": _mean(trials),
        "test_cpu_seconds": math.fsum(runs) + math.fsum(attacks),
        "run_cpu_seconds_mean": _mean(runs),
        "attack_cpu_seconds_mean": _mean(attacks),
    }
