"""Memory that the presets of real models take on each device, estimated from their published shapes; nothing is downloaded or loaded.

python experiments/memory/presets.py     # writes results/presets.json, from which the README's table is made
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
TOKENS, ANSWER = 64, 8
"""Tokens of a row, and how many of them are the answer: the longest rows of the sources of questions are about that long."""
GB = 10**9
FULL = ("model.trainable.mode=full", "trainer.accumulate=1", "trainer.strategy=fsdp2")
SETTINGS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("gpt2-small", (), 1),
    ("gemma-2-2b", (), 1),
    ("gemma-2-2b", ("model.gradient_checkpointing=true",), 1),
    ("gemma-2-9b", ("model.quantise=nf4",), 1),
    ("llama-3.1-8b", ("model.quantise=nf4",), 1),
    ("llama-3.1-8b", (), 1),
    ("gemma-2-9b", ("trainer.accumulate=1",), 8),
    ("llama-3.1-8b", FULL, 8),
    ("llama-3.1-8b", (*FULL, *(f"data.batch.{s}=16" for s in ("forget", "retain", "known", "unknown"))), 16),
)
"""Preset, further keys, devices."""


def row(preset: str, words: tuple[str, ...], devices: int) -> dict[str, Any]:
    """One estimate, in GB."""
    from unlearn.cli.pieces import public_sae
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas
    from unlearn.estimate.memory import estimate
    from unlearn.estimate.public import public_config
    from unlearn.estimate.stand_in import Size

    files = [CONFIGS / "models" / f"{preset}.yaml", CONFIGS / "runs" / "popqa.yaml"]
    config = load_config(files, words, plugin_schemas())
    shape = public_config(str(config.model.path))
    size = Size(rows=1, tokens=TOKENS, answer=ANSWER)
    found = estimate(config, shape, sae=public_sae(config, shape), world=devices, on_gpu=True, size=size)
    parts = {name: sum(found.device.get(kind, 0) for kind in kinds) / GB for name, kinds in GROUPS.items()}
    return {
        "preset": preset, "words": list(words), "devices": devices, "peak_gb": sum(found.device.values()) / GB, "parts_gb": parts,
        "measuring_gb": found.measuring / GB, "trained": found.rehearsal.trained, "weights": found.rehearsal.total,
    }  # fmt: skip


GROUPS = {
    "weights": ("weights",),
    "training": ("gradients", "optimiser", "shared"),
    "activations": ("activations", "logits"),
    "other": ("sae", "banks", "reference", "framework"),
}
"""Columns of the table, and the parts of an estimate that they add up."""


def main() -> None:
    """Estimate every setting."""
    file = HERE / "results" / "presets.json"
    file.parent.mkdir(exist_ok=True)
    rows = []
    for setting in SETTINGS:
        rows.append(row(*setting))
        file.write_text(json.dumps({"tokens": TOKENS, "answer": ANSWER, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
