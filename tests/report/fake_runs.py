"""Run directories as a small study leaves them: the original model and five methods, numbers like those of a real one."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from unlearn.tracking.files import dump_json, write_atomic
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


def write_run(out: Path, study: str, name: str, person: str = PEOPLE[0]) -> Path:
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
    if seconds is not None:
        results |= {"cost/train_seconds": seconds, "cost/step_seconds": seconds / 60, "cost/peak_memory_mb": 812.4}
        _write_curves(run, auc, p_unknown, end)
    run.write_results(results)
    _write_activations(run, end, width)
    _write_samples(run, person, forget, retain)
    write_atomic(run.manifest_path, dump_json(_manifest(run, f"{study}/{name}" if study else name, method)))
    run.set_status("finished")
    return run.path


def write_study(out: Path, study: str = "quickstart") -> list[Path]:
    """All runs of ``STUDY``."""
    return [write_run(out, study, name) for name in STUDY]


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
