"""The model card says what the numbers say, and what a reader must be warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.report.fake_runs import write_run
from unlearn.functional.judgement import judge
from unlearn.report.card import limits, model_card, result_rows
from unlearn.tracking.reader import RunRecord, read_run
from unlearn.tracking.rundir import RunDirectory

MODEL = {"dtype": "float32", "attention": None, "trainable": {"mode": "blocks"}}


def written(folder: Path, run: str = "sae_distribution", **results: float) -> RunRecord:
    path = write_run(folder, "study", run)
    RunDirectory(path).write_results(results)
    return read_run(path)


def provenance(record: RunRecord, **changes: Any) -> dict[str, Any]:
    numbers = {key: value for key, value in record.results.items() if isinstance(value, int | float)}
    return {
        "name": record.name,
        "form": "whole",
        "dtype": "float32",
        "weights": {"model.safetensors": "0" * 64},
        "prompt": "Q: {question} A: ",
        "base": {"name": "google/gemma-2-2b", "hub": True, "revision": None, "fingerprint": "f" * 16},
        "method": {"name": "sae_guided", "family": "sae", "summary": "a summary", "paper": "https://arxiv.org/abs/2509.15631"},
        "data": {"source": "jsonl", "fingerprint": "d" * 16, "forgotten": ["Bako Veda"], "hashed": False, "notes": {}},
        "sae": {"fingerprint": "e" * 16, "layer": 3},
        "run": {"fingerprint": "a" * 16, "started": "then", "command": "unlearn run x.yaml", "versions": {"torch": "2.13.0"}},
        "export": {"command": "", "versions": {"unlearn": "0.1.0"}, "git": {"commit": "c" * 40}},
        "settings": {"name": "x", "data": {"source": "jsonl"}},
        "config": {"model": MODEL, "optim": {"steps": 60, "lr": 1e-4}, "data": {}},
        "results": numbers,
        "verdict": judge(numbers)._asdict(),
        **changes,
    }


ATTACKED = {
    "attack/relearn_recovery": 0.92,
    "attack/relearn_control": 0.05,
    "attack/relearn_excess": 0.87,
    "attack/relearn_excess/ci_low": 0.8,
    "attack/relearn_excess/ci_high": 0.93,
}


def test_the_front_is_what_the_hub_reads(tmp_path: Path) -> None:
    record = written(tmp_path)
    front = yaml.safe_load(model_card(provenance(record), record).split("---\n")[1])
    assert front == {
        "base_model": "google/gemma-2-2b",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["unlearning", "unlearning-sae_guided"],
    }
    front = yaml.safe_load(model_card(provenance(record, form="adapter"), record).split("---\n")[1])
    assert (front["library_name"], front["base_model_relation"]) == ("peft", "adapter")


def test_attacks_stand_with_control_interval_and_verdict(tmp_path: Path) -> None:
    record = written(tmp_path, **ATTACKED)
    card = model_card(provenance(record), record)
    line = next(line for line in card.splitlines() if line.startswith("| relearn |"))
    for cell in ("0.92", "0.05", "+0.87 (+0.80 to +0.93)", "gets facts out"):
        assert cell in line
    assert "Verdict: **hidden**: beyond the control: relearn +0.87." in card
    assert "No attack was made" not in card
    assert "muted, not erased" in card


def test_results_stand_with_interval_and_what_was_before() -> None:
    rows = result_rows(
        {"a/x": 0.25, "a/x/ci_low": 0.1, "a/x/ci_high": 0.4, "a/x_base": 1.0, "generic/kl_to_base": 0.5, "attack/y_excess": 1.0}
    )
    assert rows == [("`a/x`", "0.250", "0.100 to 0.400", "1"), ("`generic/kl_to_base`", "0.500", "", "")]


@pytest.mark.parametrize(
    ("run", "results", "changes", "warning"),
    [
        ("sae_distribution", {}, {}, "No attack was made, so nobody knows"),
        ("sae_distribution", ATTACKED, {}, "still stored in the weights"),
        ("sae_prototype", {}, {}, "stand apart from unknown ones (C2ST AUC 0.97)"),
        ("base", {}, {}, "It still answers questions"),
        ("npo", {"retain/accuracy_base": 1.0}, {}, "does worse at what it should have kept"),
        ("sae_distribution", {"unknown/refusal_rate": 0.5}, {}, "declines 98 % of questions about the forgotten, 50 %"),
        ("sae_distribution", {}, {"dtype": "bfloat16"}, "rounded to bfloat16 and were not measured again"),
        ("sae_distribution", {}, {"form": "adapter"}, "Whoever leaves the adapter out has the original model"),
        ("sae_distribution", {}, {"form": "merged"}, "changes logits by a rounding"),
        (
            "sae_distribution",
            {},
            {"form": "merged", "config": {"model": {**MODEL, "quantise": "nf4"}, "optim": {"steps": 1, "lr": 1.0}, "data": {}}},
            "measured beside nf4 weights",
        ),
        ("sae_distribution", {}, {"data": {"source": "world", "hashed": True}}, "can find out by comparing"),
        ("sae_distribution", {}, {"data": {"source": "world", "hashed": True}}, "tiny model of invented people"),
    ],
)
def test_what_a_reader_must_know_is_said(
    tmp_path: Path, run: str, results: dict[str, float], changes: dict[str, Any], warning: str
) -> None:
    plain, telling = written(tmp_path / "a", "sae_distribution", **ATTACKED), written(tmp_path / "b", run, **results)
    assert any(warning in limit for limit in limits(provenance(telling, **changes), telling))
    if warning != "still stored in the weights":
        assert not any(warning in limit for limit in limits(provenance(plain), plain))


def test_attention_and_type_stand_in_the_snippet(tmp_path: Path) -> None:
    record = written(tmp_path)
    config = {"model": {**MODEL, "attention": "eager"}, "optim": {"steps": 60, "lr": 1e-4}, "data": {}}
    card = model_card(provenance(record, config=config, dtype="bfloat16"), record)
    assert 'AutoModelForCausalLM.from_pretrained("DIR", dtype="bfloat16", attn_implementation="eager")' in card
    assert "AutoPeftModelForCausalLM.from_pretrained" in model_card(provenance(record, form="adapter"), record)
