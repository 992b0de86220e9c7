"""A tiny model, its tokenizer, an SAE fitted to it and rows about invented people, as files: everything that a user would have on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.tiny import tiny_llama, tiny_sae, tiny_tokenizer
from tests.toys import PEOPLE, toy_data
from tests.tracking.stores import new_store
from unlearn.models.capture import capture
from unlearn.types import IGNORE_INDEX, TokenBatch

LAYER = 1
COMPONENTS = 14


def lines() -> list[dict[str, str]]:
    """JSON-lines rows of the toy people."""
    data, made = toy_data(), []
    sets = {"forget": data.streams["forget"], "retain": data.streams["retain"], "unknown": data.streams["unknown"]}
    sets |= {"forget_paraphrased": data.evaluation["forget_paraphrased"], "retain_unseen": data.evaluation["retain_unseen"]}
    sets |= {"unknown_heldout": data.evaluation["unknown"]}
    for split, rows in sets.items():
        made += [{"question": r.prompt, "answer": r.answer, "entity": r.entity, "split": split} for r in rows]
    return made + [{"answer": text, "split": "generic"} for text in data.generic]


def fitted_sae(lm: torch.nn.Module, texts: list[str], layer: int, path: Path, width: int = 32) -> None:
    """Save a ReLU SAE whose latents are the +/- principal components of block ``layer`` on ``texts``."""
    tokenizer = tiny_tokenizer()
    parts = []
    for text in texts:
        ids = torch.tensor([tokenizer(text).input_ids])
        none = torch.zeros(1, dtype=torch.long)
        batch = TokenBatch(ids, torch.ones_like(ids), torch.full_like(ids, IGNORE_INDEX), none, none, none)
        with torch.no_grad():
            parts.append(capture(lm, batch, layer)[0, 1:])
    x = torch.cat(parts)
    _, _, basis = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    sae = tiny_sae(d_in=width, d_sae=2 * COMPONENTS, architecture="standard", layer=layer)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([basis[:COMPONENTS], -basis[:COMPONENTS]]).T)
        sae.W_dec.copy_(torch.cat([basis[:COMPONENTS], -basis[:COMPONENTS]]))
        sae.b_enc.zero_()
        sae.b_dec.copy_(x.mean(0))
    sae.save_model(path)


def spread_blocks(lm: torch.nn.Module) -> None:
    """Make each block move the stream a lot, so that an SAE of one block does not fit the next."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in lm.model.layers:  # type: ignore[union-attr]
            block.mlp.down_proj.weight.copy_(torch.randn(32, 3, generator=generator) @ torch.randn(3, 64, generator=generator))


def make_mini(folder: Path, *, tracked: bool = True) -> dict[str, object]:
    """Write model/, sae/ and rows.jsonl to ``folder``; returns a configuration that uses them, with a new MLflow store if ``tracked``."""
    lm = tiny_llama(layers=4, seed=5)
    spread_blocks(lm)
    lm.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in lines() if "question" in row]
    fitted_sae(lm, texts, LAYER, folder / "sae")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines()), encoding="utf-8")
    return {
        "name": "run",
        "out": str(folder / "runs"),
        "cache": str(folder / "cache"),
        "data": {
            "source": "jsonl",
            "path": str(folder / "rows.jsonl"),
            "refusals": ["unknown"],
            "batch": {"forget": 4, "retain": 4, "known": 4, "unknown": 4},
        },
        "model": {"path": str(folder / "model")},
        "sae": {"path": str(folder / "sae")},
        "latents": {"top_k": 4},
        "method": {"name": "sae_guided", "objective": "prototype"},
        "optim": {"steps": 6, "lr": 1.0e-3},
        "trainer": {"accelerator": "cpu", "devices": "1", "progress_bar": False},
        "evaluation": {"bootstrap": 20, "permutations": 9, "null_draws": 3, "max_new_tokens": 4, "every": 2, "samples": 4},
        "tracking": {"uri": new_store(folder / "mlflow.db")} if tracked else {"enabled": False},
    }


__all__ = ["LAYER", "PEOPLE", "fitted_sae", "lines", "make_mini"]
