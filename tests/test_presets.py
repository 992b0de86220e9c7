"""Presets of real models with the runs for them, from command line to results, on small models of the same architectures.

Nothing but the hub cache is another one: names, revisions, releases, ids, chat templates and file formats are the public ones.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import SHAPES, Hub
from tests.data.sources.fake_benchmarks import FAKES
from unlearn.cli import main
from unlearn.run import read_json

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).parents[1] / "configs"
PAIRS = [
    ("gemma-2-2b", "rwku", []),
    ("gemma-2-2b-it", "tofu", []),
    ("gemma-2-9b", "popqa", ["sae.sae_id=layer_20/width_65k/canonical"]),
    ("gemma-2-9b-it", "wikidata", ["model.quantise=nf4", "optim.name=adamw_8bit"]),
    ("llama-3.1-8b", "wikidata", ["model.quantise=8bit"]),
    ("llama-3.1-8b-instruct", "rwku", ["model.chat.system=Be brief.", "model.lora.rslora=true"]),
    ("gpt2-small", "popqa", ["model.gradient_checkpointing=true"]),
]
"""Every preset, every run, every way to train that a preset suggests."""
SMALL = [
    "optim.steps=2", "optim.warmup_steps=0", "evaluation.bootstrap=0", "evaluation.permutations=5", "evaluation.null_draws=0",
    "evaluation.max_new_tokens=3", "evaluation.samples=2", "evaluation.every=0", "data.eval_rows=8", "data.unknown_names=10",
    "data.heldout_names=5", "tracking.enabled=false", "trainer.progress_bar=false", "trainer.accelerator=cpu", "trainer.devices=1",
]  # fmt: skip
FEW: dict[str, list[str]] = {
    "rwku": ["data.utility=false", "data.train_rows=12", "data.max_people=6", "data.text_words=40", "data.stem_words=8"],
    "tofu": ["data.max_authors=4"],
    "popqa": ["data.forget_entities=3", "data.max_entities=8"],
    "wikidata": ["data.forget_entities=3", "data.max_entities=8"],
}


@pytest.mark.parametrize(("model", "run", "more"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_a_preset_runs(
    small_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, model: str, run: str, more: list[str]
) -> None:
    small_hub.need(model)
    FAKES[run][0](tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    words = [str(CONFIGS / "models" / f"{model}.yaml"), str(CONFIGS / "runs" / f"{run}.yaml")]
    words += [f"data.root={tmp_path / 'data'}", f"cache={tmp_path / 'cache'}", *SMALL, *FEW[run], *more]
    with caplog.at_level(logging.WARNING, "unlearn"), pytest.raises(SystemExit) as ended:
        main(["run", *words])
    assert ended.value.code == 0
    folder = tmp_path / "runs" / model / run
    results: dict[str, Any] = read_json(folder / "results.json")
    facts = read_json(folder / "manifest.json")
    assert read_json(folder / "status")["state"] == "finished"
    hook = facts["hook"]
    assert hook["fvu"][str(hook["layer"])] == min(hook["fvu"].values()) < 0.5
    assert 0 <= results["forget/accuracy"] <= 1
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [row["value"] for row in rows if row["key"] == "train/loss"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    base = [record.getMessage() for record in caplog.records if "was trained on the base model" in record.getMessage()]
    assert len(base) == (SHAPES[model].of is not None and not SHAPES[model].saes)
