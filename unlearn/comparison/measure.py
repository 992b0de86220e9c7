"""Measure one method's chosen setting with one seed on the test rows, attacks included."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn import __version__
from unlearn.comparison.ledger import Ledger, plain_numbers
from unlearn.comparison.plan import NONE, Plan
from unlearn.comparison.tune import numbers
from unlearn.errors import RunError
from unlearn.functional.judgement import judge
from unlearn.functional.objective import axes, harm, parts, tuning_score
from unlearn.tracking.files import read_json
from unlearn.tracking.rundir import ENTITIES, MANIFEST, RESULTS

KEPT = ("forget/", "retain/", "unknown/", "generic/", "latent/", "collapse/", "cost/", "attack/")
PAIRED = ("forget/accuracy", "forget/accuracy_paraphrased", "retain/accuracy_unseen")
"""Results whose entities a paired test takes one by one."""


def measure(plan: Plan, method: str, seed: int, params: Mapping[str, Any]) -> None:
    """Run, attack, and write ``METHOD-seedN.json``; what is there is kept.

    Raises:
        RunError: an attack failed, or the file is that of another setting.
        UnlearnError: the run cannot be made.
    """
    ledger = Ledger(plan.ledger)
    if kept := ledger.test(method, seed):
        if kept["params"] != plain_numbers(params):
            path = ledger.test_path(method, seed)
            raise RunError(f"{path} must be a test of the setting that tuning chose; found another one, {kept['params']}. Delete it.")
        return
    from unlearn.run import execute

    started, cpu = time.perf_counter(), time.process_time()
    path = execute(plan.run(method, seed, params), go_on=True)
    after_run = time.process_time()
    if plan.suite != NONE:
        _attack(plan, method, path)
    cost = {
        "run_cpu_seconds": after_run - cpu,
        "attack_cpu_seconds": time.process_time() - after_run,
        "seconds": time.perf_counter() - started,
    }
    results = numbers(read_json(path / RESULTS))
    entities = read_json(path / ENTITIES)
    manifest = read_json(path / MANIFEST)
    record = {
        "method": method,
        "seed": seed,
        "params": dict(params),
        "score": tuning_score(results),
        "harm": harm(results),
        "parts": parts(results),
        "axes": axes(results),
        "verdict": judge(results).word,
        "results": {key: value for key, value in sorted(results.items()) if key.startswith(KEPT) and "@" not in key},
        "entities": {key: entities[key] for key in PAIRED if key in entities},
        "cost": cost,
        "made": {"version": __version__, "commit": (manifest.get("git") or {}).get("commit"), "fingerprint": manifest.get("fingerprint")},
    }
    ledger.write(ledger.test_path(method, seed), record)
    (path / "checkpoints" / "last.ckpt").unlink(missing_ok=True)


def _attack(plan: Plan, method: str, path: Path) -> None:
    """Attack the finished run.

    Raises:
        RunError: an attack failed; the others are kept.
    """
    from unlearn.attack import attack

    gold = ["evaluation.gold=source"] if plan.gold and method != "gold" else []
    done = attack(str(path), plan.suite, list(plan.attack), gold)
    if done.failed:
        raise RunError("; ".join(f"attack {name}: {error}" for name, error in done.failed.items()))
