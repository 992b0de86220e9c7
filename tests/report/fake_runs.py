"""Run directories as a small study leaves them: the original model and five methods, numbers like those of a real one."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import numpy as np

from unlearn.tracking.files import dump_json, read_json, write_atomic
from unlearn.tracking.rundir import RunDirectory

HOSTILE = "<script>alert(1)</script>"

NULL = {
    "latent/c2st_null_low": 0.41,
    "latent/c2st_null_high": 0.63,
    "latent/null_distance_low": 0.35,
    "latent/null_distance_high": 1.9,
    "latent/known_distance_low": 3.6,
    "latent/known_distance_high": 5.2,
}

COLLAPSED = "retain accuracy fell from 1.00 to 0.00; generic perplexity 8 is 2.8 times the original 2.9"

# forget, rephrased, refusal, retain, unseen, perplexity, C2ST, P(unknown), seconds, why it collapsed,
# where the target ends (0 known, 1 unknown), and how wide
STUDY = {
    "base": (1.0, 1.0, 0.0, 1.0, 1.0, 2.90, 0.99, 0.01, None, "", 0.0, 1.0),
    "gradient_ascent": (0.0, 0.0, 1.0, 0.0, 0.0, 8.0, 0.36, 0.97, 3.1, COLLAPSED, 1.6, 0.5),
    "npo": (0.02, 0.04, 0.9, 0.7, 0.66, 2.91, 0.65, 0.81, 6.4, "", 0.8, 1.2),
    "rmu": (0.0, 0.0, 0.96, 0.88, 0.85, 3.46, 1.0, 0.93, 4.8, "", 2.2, 0.3),
    "sae_prototype": (0.0, 0.0, 1.0, 0.99, 0.98, 2.90, 0.97, 0.99, 7.7, "", 1.05, 0.25),
    "sae_distribution": (0.02, 0.02, 0.98, 0.98, 0.97, 2.89, 0.54, 0.98, 8.2, "", 1.0, 1.0),
}  # fmt: skip

METHODS = {"base": "none", "sae_prototype": "sae_guided", "sae_distribution": "sae_guided"}

PEOPLE = ("Bako Veda", "Luro Simi", "Tavi Noro")


# relearning: back, control, and the same for what steering gets out
ATTACKS = {
    "base": (1.0, 0.1, 1.0, 0.0),
    "gradient_ascent": (0.12, 0.1, 0.02, 0.0),
    "npo": (0.62, 0.1, 0.2, 0.0),
    "rmu": (0.81, 0.1, 0.35, 0.0),
    "sae_prototype": (0.95, 0.1, 0.9, 0.0),
    "sae_distribution": (0.93, 0.1, 0.7, 0.0),
}


def write_run(out: Path, study: str, name: str, person: str = PEOPLE[0], attacks: bool = False) -> Path:
    """One full run directory of ``STUDY``."""
    forget, rephrased, refusal, retain, unseen, perplexity, auc, p_unknown, seconds, reason, end, width = STUDY[name]
    method = METHODS.get(name, name)
    run = RunDirectory.create(out, f"{study}/{name}" if study else name)
    objective = f"  objective: {name.partition('_')[2]}\n" if method == "sae_guided" else ""
    run.write_config(
        f"name: {study}/{name}\nout: runs\nseed: 0\ncache: /home/someone/cache\n"
        "data:\n  source: world\n  batch:\n    forget: 32\n    retain: 32\n"
        f"method:\n  name: {method}\n{objective}optim:\n  steps: {0 if name == 'base' else 60}\n  lr: 5.0e-4\n"
        "tracking:\n  uri: http://me:secret@mlflow:5000\n"
    )
    results = {
        "forget/accuracy": forget,
        "forget/accuracy/ci_low": max(0.0, forget - 0.03),
        "forget/accuracy/ci_high": min(1.0, forget + 0.04),
        "forget/accuracy_paraphrased": rephrased,
        "forget/refusal_rate": refusal,
        "retain/accuracy": retain,
        "retain/accuracy_base": 1.0,
        "retain/accuracy/ci_low": max(0.0, retain - 0.02),
        "retain/accuracy/ci_high": min(1.0, retain + 0.01),
        "retain/accuracy_unseen": unseen,
        "generic/perplexity": perplexity,
        "generic/perplexity_base": 2.90,
        "latent/c2st_auc": auc,
        "latent/p_unknown": p_unknown,
        "latent/mmd_p_value": 0.3 if auc < 0.64 else 0.005,
        "collapse/flag": bool(reason),
        "collapse/reason": reason,
        **NULL,
    }
    results |= {f"forget/answers_{kind}": share for kind, share in mix(forget, refusal).items()}
    results |= {f"unknown/answers_{kind}": share for kind, share in mix(0.0, 0.94).items()}
    if attacks:
        results |= _write_attacks(run, name)
    if seconds is not None:
        results |= {
            "cost/train_cpu_seconds": 0.98 * seconds,
            "cost/train_seconds": seconds,
            "cost/step_seconds": seconds / 60,
            "cost/peak_memory_mb": 812.4,
        }
        _write_curves(run, auc, p_unknown, end)
    run.write_results(results)
    _write_activations(run, end, width)
    _write_samples(run, person, forget, retain)
    write_atomic(run.manifest_path, dump_json(_manifest(run, f"{study}/{name}" if study else name, method)))
    run.set_status("finished")
    return run.path


def mix(forget: float, refusal: float) -> dict[str, float]:
    """Shares of kinds of answers that go with a forget accuracy and a refusal rate."""
    rest = max(0.0, 1 - forget - refusal)
    return {"correct": forget, "plausible": 0.7 * rest, "refusal": 1 - forget - rest, "off_topic": 0.3 * rest, "degenerate": 0.0}


def write_study(out: Path, study: str = "quickstart", attacks: bool = False) -> list[Path]:
    """All runs of ``STUDY``."""
    return [write_run(out, study, name, attacks=attacks) for name in STUDY]


def write_large(out: Path, methods: int = 30, seeds: int = 5) -> list[Path]:
    """A study of many methods with several seeds each, attacked, every method with keys of its own."""
    rng, paths, kinds = np.random.default_rng(0), [], list(STUDY)
    for number in range(methods):
        kind = kinds[number % len(kinds)] if number else "base"
        name = "none" if not number else f"method_{number:02d}_with_a_name" if number % 7 == 0 else f"method_{number:02d}"
        for seed in range(seeds):
            path = write_run(out / f"{number}_{seed}", "", kind, attacks=True)
            run = RunDirectory(path)
            text = run.config_path.read_text(encoding="utf-8").replace("seed: 0", f"seed: {seed}")
            if number:
                own = f"  beta_{number}: {0.1 * number}\n"
                text = re.sub(r"method:\n  name: .*\n", f"method:\n  name: {name}\n{own}  weight: {number}\n", text)
            run.write_config(text.replace(f"name: /{kind}", f"name: large/{name}/seed{seed}"))
            shifts = {
                key: rng.normal(0, 0.03) for key in ("forget/accuracy", "retain/accuracy", "latent/c2st_auc", "attack/relearn_excess")
            }
            results = read_json(run.results_path)
            run.write_results({key: min(1.0, max(0.0, results[key] + shift)) for key, shift in shifts.items()})
            write_atomic(run.manifest_path, dump_json(_manifest(run, f"large/{name}/seed{seed}", name) | {"seeds": {"seed": seed}}))
            paths.append(path)
    return paths


def _manifest(run: RunDirectory, name: str, method: str) -> dict:
    return {
        "name": name,
        "fingerprint": f"{zlib.crc32(name.encode()):08x}{zlib.crc32(method.encode()):08x}",
        "seeds": {"seed": 0},
        "started": "2026-02-03T10:20:30+00:00",
        "command": f"unlearn run quickstart.yaml method.name={method}",
        "versions": {"python": "3.11.7", "unlearn": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6", "transformers": "5.23.0"},
        "git": {"commit": "ecdea0c5f2b14b0e8d5f6a7b8c9d0e1f2a3b4c5d", "dirty": False},
        "hardware": {"machine": "x86_64", "system": "Linux", "cpus": 2, "memory_gib": 15.6, "gpus": []},
        "batch": {"forget": 32, "retain": 32, "known": 32, "unknown": 32, "accumulate": 1},
        "precision": {"dtype": "float32", "trainer": None},
        "data_fingerprint": "8f14e45fceea167a",
        "model_fingerprint": "c9f0f895fb98ab91",
    }


def _write_attacks(run: RunDirectory, name: str) -> dict[str, float]:
    """The record of a relearning attack with two learning rates and four numbers of steps, and the results of two attacks."""
    back, control, steered, unsteered = ATTACKS[name]
    cells = [f"lr{lr}_step{step}" for lr in (0.001, 0.01) for step in (5, 10, 20, 40)]
    reached = [(0.4 if "lr0.001" in cell else 1.0) * min(1.0, int(cell.rpartition("step")[2]) / 20) for cell in cells]

    def answers(share: float) -> list[list[int]]:
        return [[int(i < round(20 * share * part)) for i in range(20)] for part in reached]

    outcome = {"cells": cells, "target": answers(back), "control": answers(control), "extra": {}}
    record = {"outcome": outcome, "gold": {"cells": cells, "target": answers(0.15), "control": answers(control)}}
    write_atomic(run.path / "attacks" / "relearn.json", dump_json(record))
    found: dict[str, float] = {}
    for attack, target, beside in (("relearn", back, control), ("steer", steered, unsteered)):
        measure = "recovery" if attack == "relearn" else "accuracy"
        found |= {f"attack/{attack}_{measure}": target, f"attack/{attack}_control": beside, f"attack/{attack}_excess": target - beside}
        found |= {f"attack/{attack}_excess/ci_low": target - beside - 0.05, f"attack/{attack}_excess/ci_high": target - beside + 0.04}
    return {**found, "attack/relearn_gold": 0.15, "attack/relearn_gold_excess": 0.05}


def _write_curves(run: RunDirectory, auc: float, p_unknown: float, end: float) -> None:
    rng = np.random.default_rng(len(run.path.name))
    for step in range(0, 61, 10):
        done = 1 - math.exp(-step / 15)
        run.append_metrics(
            step,
            "train",
            {
                "train/loss": 3 * math.exp(-step / 20),
                "latent/distance_to_known": 1.0 + 4.0 * done * end + rng.normal(0, 0.05),
                "latent/distance_to_unknown": max(0.1, 4.4 - 3.4 * done * min(end, 1.3) + rng.normal(0, 0.05)),
                "latent/p_unknown": 0.01 + done * (p_unknown - 0.01),
                "latent/c2st_auc": 0.99 + done * (auc - 0.99),
            },
        )


def _write_activations(run: RunDirectory, end: float, width: float) -> None:
    rng = np.random.default_rng(3)
    towards = np.zeros(32)
    towards[:2] = 6.0, 1.5
    known, unknown = rng.normal(0, 1, (90, 32)), rng.normal(0, 1, (120, 32)) + towards
    known[:, 3] *= 2.5
    unknown[:, 3] *= 2.0
    before = rng.normal(0, 1, (30, 32))
    before[:, 3] *= 2.5
    moved = before * width + end * towards if end else before
    run.write_activations(known_ND=known, unknown_MD=unknown, target_before_KD=before, target_after_KD=moved)


def _write_samples(run: RunDirectory, person: str, forget: float, retain: float) -> None:
    rows = [("forget", person, "Nimora", forget), ("forget_paraphrased", person, "baker", forget)]
    rows += [
        ("retain", "Luro Simi", "chess", retain),
        ("retain_unseen", "Tavi Noro", "Keleth", retain),
        ("unknown", "Ziko Pela", "unknown", 0.0),
    ]
    questions = {
        "forget": "Where was {} born?",
        "forget_paraphrased": "What does {} do for a living, if anybody knows?",
        "retain": "What is {}'s hobby?",
    }
    run.append_samples(
        {
            "set": name,
            "entity": who,
            "prompt": questions.get(name, "Which city does {} call home?").format(who),
            "reference": answer,
            "before": answer,
            "after": answer if share > 0.5 else ("unknown unknown unknown unknown unknown" if "gradient" in run.path.name else "unknown"),
        }
        for name, who, answer, share in rows
    )
