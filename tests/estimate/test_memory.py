"""The estimate against the memory that real training takes from PyTorch's allocator, and against what arithmetic says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripts import module_of
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.estimate.memory import estimate, rows_per_device
from unlearn.estimate.public import SHAPES, public_config
from unlearn.estimate.rehearsal import KINDS, blank_lm, rehearse
from unlearn.estimate.stand_in import Size, batches_of, blank_sae, data_of, reader_of
from unlearn.registry import entries, find
from unlearn.types import STREAMS

SIZES = {s: Size(rows=4, tokens=24, answer=6) for s in STREAMS}


study = module_of("experiments/memory/measure.py")


def run(*words: str) -> Any:
    base = {"name": "x", "data": {"source": "world"}, "trainer": {"accelerator": "cpu"}, "latents": {"bank_rows": 8}}
    return load_config(base, words, plugin_schemas())


def small(**options: Any) -> Any:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return study.model_config("llama", **{**shape, **options})


CHECKED = {
    name: study.CASES[name]
    for name in (
        "llama_blocks_sae_guided", "llama_full_grad_diff", "llama_lora_npo", "llama_lora_sae_guided_bf16", "llama_blocks_mixed",
        "llama_accumulate", "gemma2_lora_sae_guided", "gemma2_early_exit", "gpt2_full_dpo", "gpt2_modules_grad_diff",
    )
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_within_15_percent_of_what_real_training_takes(name: str, tmp_path: Path) -> None:
    lower = {"n_layer": 3} if "gpt2" in name else {"num_hidden_layers": 3}
    case = replace(CHECKED[name], rows=min(6, CHECKED[name].rows), model_options=lower)
    found = study.measured(case, tmp_path, steps=0)
    guess = study.estimated(case)
    assert found["peak"] > 30 * 2**20  # enough for the figure to mean something
    assert sum(guess.device.values()) == pytest.approx(found["peak"], rel=0.15)


STEPPING = sorted(n for n in entries("method") if (c := find("method", n).load()).streams_of(c.Config(name=n)))


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPING)
def test_every_method_with_steps_can_be_rehearsed(name: str) -> None:
    config, data, reader = run(f"method.name={name}"), data_of(SIZES), reader_of(256, 8)
    lm = blank_lm(small(), "float32", None)
    found = rehearse(config, lm, batches_of(data, reader), sae=blank_sae(32, 64, "topk", 1), data=data, reader=reader)
    assert all(p.device.type == "meta" for p in lm.parameters())
    assert sum(found.parts.values()) == found.peak
    assert min(found.parts[kind] for kind in ("weights", "activations", "optimiser")) > 0
    assert sum(flops * n for (flops, _), n in found.work.items()) > 6 * 1000


def test_weights_gradients_and_optimiser_are_what_arithmetic_says() -> None:
    config = run("method.name=grad_diff", "model.trainable.mode=full")
    lm_config = small(tie_word_embeddings=False)
    count = sum(p.numel() for p in blank_lm(lm_config, "float32", None).parameters())
    found = estimate(config, lm_config, size=SIZES["forget"])
    assert set(found.device) == {*KINDS, "framework"}
    assert found.rehearsal.total == found.rehearsal.trained == count
    assert 4 * count <= found.device["weights"] <= 4 * count + 4096  # and the buffers of the positions
    assert 8 * count <= found.device["optimiser"] <= 8 * count + 4096  # Adam's two moments, and step counters


def test_half_precision_halves_the_weights_and_lora_leaves_few_gradients() -> None:
    full = estimate(run("method.name=grad_diff", "model.trainable.mode=full"), small(), size=SIZES["forget"])
    half = estimate(run("method.name=grad_diff", "model.dtype=bfloat16"), small(), size=SIZES["forget"])
    lora = estimate(run("method.name=grad_diff", "model.trainable.mode=lora", "model.lora.rank=2"), small(), size=SIZES["forget"])
    assert half.device["weights"] == pytest.approx(full.device["weights"] / 2, rel=0.02)
    assert lora.rehearsal.trained < full.rehearsal.trained / 5
    assert lora.device["optimiser"] < full.device["optimiser"] / 5


def test_checkpointing_trades_activations_for_work() -> None:
    lm_config, size = small(vocab_size=64), Size(rows=4, tokens=128, answer=6)
    kept = estimate(run("method.name=grad_diff", "model.dtype=bfloat16"), lm_config, size=size)
    again = estimate(run("method.name=grad_diff", "model.dtype=bfloat16", "model.gradient_checkpointing=true"), lm_config, size=size)
    work = [sum(flops * n for (flops, _), n in e.rehearsal.work.items()) for e in (kept, again)]
    assert again.device["activations"] < 0.7 * kept.device["activations"]
    assert work[1] == pytest.approx(work[0] * 4 / 3, rel=0.1)  # one more forward pass of the blocks


def test_quantised_weights_and_8_bit_states_are_counted_by_their_bytes() -> None:
    words = ("method.name=grad_diff", "model.trainable.mode=lora", "model.dtype=bfloat16")
    lm_config = small(hidden_size=256, intermediate_size=512)
    plain = estimate(run(*words), lm_config, size=SIZES["forget"])
    bits = estimate(run(*words, "model.quantise=nf4", "optim.name=adamw_8bit"), lm_config, size=SIZES["forget"])
    lm = blank_lm(lm_config, "bfloat16", None)
    inside = sum(m.weight.numel() for b in lm.model.layers for m in b.modules() if isinstance(m, torch.nn.Linear))
    assert plain.device["weights"] - bits.device["weights"] == pytest.approx(inside * (2 - 0.516), rel=0.001)
    assert bits.device["optimiser"] < 0.45 * plain.device["optimiser"]
    paged = estimate(run(*words, "optim.name=paged_adamw"), lm_config, size=SIZES["forget"])
    assert paged.device["optimiser"] == 0


def test_early_exit_computes_less_and_keeps_no_logits() -> None:
    deep = estimate(run("method.name=grad_diff"), small(), size=SIZES["forget"])
    early = estimate(run("method.name=rmu", "method.layer=0"), small(), size=SIZES["forget"])
    work = [sum(flops * n for (flops, _), n in e.rehearsal.work.items()) for e in (deep, early)]
    assert work[1] < work[0] / 2
    assert early.device["logits"] == 0
    assert early.peak < deep.peak


def test_devices_share_rows_and_ddp_keeps_gradients_twice() -> None:
    config = run("method.name=grad_diff", "trainer.accumulate=2")
    assert rows_per_device(config, 4) == dict.fromkeys(STREAMS, 4)
    one, four = (estimate(config, small(), size=SIZES["forget"], world=world) for world in (1, 4))
    assert four.device["shared"] == one.rehearsal.trained_bytes
    assert four.device["activations"] < one.device["activations"] / 2
    sharded = estimate(run("method.name=grad_diff", "trainer.strategy=fsdp2"), small(), size=SIZES["forget"], world=4)
    assert sharded.device["weights"] == -(-one.device["weights"] // 4)


@pytest.mark.parametrize(
    ("hub_id", "billions"), [("google/gemma-2-2b", 2.61), ("google/gemma-2-9b", 9.24), ("meta-llama/Llama-3.1-8B", 8.03)]
)
def test_public_shapes_have_the_published_number_of_weights(hub_id: str, billions: float) -> None:
    lm = blank_lm(public_config(hub_id), "bfloat16", None)
    assert sum(p.numel() for p in lm.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
    assert public_config("nobody/nothing") is None
    assert hub_id in SHAPES


@pytest.mark.slow
def test_a_real_model_is_estimated_without_weights_or_much_memory() -> None:
    words = ("method.name=sae_guided", "model.dtype=bfloat16", "model.trainable.mode=lora", "model.attention=eager")
    sae = blank_sae(2304, 16384, "jumprelu", 12)
    found = estimate(run(*words), public_config("google/gemma-2-2b"), sae=sae, size=Size(rows=1, tokens=64, answer=8), on_gpu=True)
    assert found.device["weights"] == pytest.approx(2 * 2.61e9, rel=0.02)
    assert found.device["sae"] == pytest.approx(2 * 2304 * 16384 * 4, rel=0.01)
    assert found.peak > sum(found.device[kind] for kind in ("weights", "sae"))
    assert torch.cuda.is_available() or found.device["framework"] > 0
