"""Made-up files of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearn.comparison.ledger import Ledger
from unlearn.comparison.plan import Plan
from unlearn.config.layers import Layer
from unlearn.functional.objective import axes, parts, tuning_score

PEOPLE = [f"P{i}" for i in range(10)]


def plan_of(folder: Path, methods: tuple[str, ...] = ("none", "npo", "rmu", "wga"), seeds: tuple[int, ...] = (0, 1)) -> Plan:
    return Plan(
        name="made",
        base=(Layer({"data": {"source": "world"}}),),
        methods=methods,
        trials=2,
        seeds=seeds,
        reference="npo",
        ledger=folder,
        suite="relearn",
    )


def measured_record(
    method: str, seed: int, *, forget: float = 0.0, unseen: float = 1.0, auc: float = 0.5, relearn: float = 0.0, cost: float = 5.0
) -> dict[str, Any]:
    """What ``measure`` writes; ``forget`` and ``unseen`` are the shares of people still answered about, the first ones."""
    results = {
        "forget/accuracy": forget,
        "forget/accuracy_paraphrased": forget,
        "retain/accuracy": 1.0,
        "retain/accuracy_base": 1.0,
        "retain/accuracy_unseen": unseen,
        "retain/accuracy_unseen_base": 1.0,
        "generic/perplexity": 2.0,
        "generic/perplexity_base": 2.0,
        "latent/c2st_auc": auc,
        "attack/relearn_excess": relearn,
        "cost/train_cpu_seconds": cost,
    }
    hits = {
        key: {name: float(i < round(share * len(PEOPLE))) for i, name in enumerate(PEOPLE)}
        for key, share in (("forget/accuracy", forget), ("forget/accuracy_paraphrased", forget), ("retain/accuracy_unseen", unseen))
    }
    return {
        "method": method,
        "seed": seed,
        "params": {},
        "score": tuning_score(results),
        "harm": 0.0,
        "parts": parts(results),
        "axes": axes(results),
        "verdict": "hidden",
        "results": results,
        "entities": hits,
        "cost": {"run_cpu_seconds": 10.0, "attack_cpu_seconds": 20.0, "seconds": 40.0},
    }


def tuning_record(method: str, score: float = 0.5) -> dict[str, Any]:
    """What ``tune`` writes."""
    rows = [{"number": i, "state": "finished", "params": {"optim.lr": 0.1}, "score": score, "cpu_seconds": 4.0} for i in range(2)]
    return {"method": method, "trials": rows, "best": {"number": 0, "score": score, "params": {"optim.lr": 0.1}}}


def write_all(plan: Plan, numbers: dict[str, dict[str, float]]) -> Ledger:
    """A ledger with every test of the plan's methods in ``numbers``."""
    ledger = Ledger(plan.ledger)
    for method, given in numbers.items():
        if method != "none":
            ledger.write(ledger.tuning_path(method), tuning_record(method))
        for seed in plan.seeds:
            ledger.write(ledger.test_path(method, seed), measured_record(method, seed, **given))
    return ledger
