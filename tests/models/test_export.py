"""What is written loads again with plain transformers or peft and computes the same; the three architectures under their hub ids."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.architectures import SHAPES, Hub, redirected
from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer
from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.models.export import form_of, on_whole_weights, weight_hashes, write_model, write_tokenizer
from unlearn.models.lm import load_lm
from unlearn.models.trainable import select_trainable

IDS = torch.arange(5, 45).reshape(2, 20)
MERGED = 1e-4
"""Largest difference of logits, relative to the largest, that adding adapters in may make (float32)."""


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        return lm.eval()(IDS).logits.float()


def adapted(lm: Any, targets: list[str], *, embeddings: bool = False, rslora: bool = False) -> Any:
    """``lm`` with adapters that do something."""
    config = ModelConfig(
        trainable=TrainableConfig(mode="lora", embeddings=embeddings), lora=LoRAConfig(rank=4, targets=targets, rslora=rslora)
    )
    lm, _ = select_trainable(lm, config, None)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return lm


def loaded(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


LLAMA, GPT2 = ["q_proj", "v_proj", "down_proj"], ["c_attn", "c_proj"]


@pytest.mark.parametrize("make", [lambda: tiny_llama(), lambda: tiny_llama(tie=True), lambda: tiny_gpt2()], ids=["llama", "tied", "gpt2"])
def test_all_weights_come_back_to_the_bit(tmp_path: Path, make: Any) -> None:
    lm = make()
    expected = logits(lm)
    assert form_of(lm, None) == "whole"
    write_model(lm, "whole", "float32", tmp_path)
    again = loaded(tmp_path)
    assert torch.equal(logits(again), expected)
    assert again.generation_config.eos_token_id == lm.generation_config.eos_token_id
    assert list(weight_hashes(tmp_path)) == ["model.safetensors"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_type_is_the_same_weights_rounded(tmp_path: Path, dtype: str) -> None:
    lm = tiny_llama()
    target = getattr(torch, dtype)
    expected = {name: p.detach().to(target) for name, p in lm.named_parameters()}
    write_model(lm, "whole", dtype, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert {name: torch.equal(written[name], p) for name, p in expected.items()} == dict.fromkeys(expected, True)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    assert loaded(tmp_path).dtype == target


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("make", "targets"), [(tiny_llama, LLAMA), (tiny_gpt2, GPT2)], ids=["llama", "gpt2"])
def test_adapters_added_in_compute_what_they_did_beside_the_weights(tmp_path: Path, make: Any, targets: list[str], rslora: bool) -> None:
    base, lm = logits(make()), adapted(make(), targets, rslora=rslora)
    expected = logits(lm)
    assert (expected - base).abs().max() > 0.1 * base.abs().max()
    assert form_of(lm, None) == "merged"
    write_model(lm, "merged", "float32", tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert (logits(loaded(tmp_path)) - expected).abs().max() <= MERGED * expected.abs().max()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("embeddings", [False, True])
def test_the_adapter_alone_is_enough_beside_its_original(tmp_path: Path, embeddings: bool, tie: bool) -> None:
    from peft import AutoPeftModelForCausalLM

    tiny_llama(tie=tie).save_pretrained(tmp_path / "base")
    lm = adapted(loaded(tmp_path / "base"), LLAMA, embeddings=embeddings)
    expected = logits(lm)
    write_model(lm, form_of(lm, "adapter"), "float32", tmp_path / "out")
    assert sorted(weight_hashes(tmp_path / "out")) == ["adapter_model.safetensors"]
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")), expected)


def test_merging_in_bfloat16_rounds_once(tmp_path: Path) -> None:
    lm = adapted(tiny_llama().bfloat16(), LLAMA)
    exact = copy.deepcopy(lm).float().merge_and_unload()
    write_model(lm, "merged", "bfloat16", tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(written[name], exact.get_parameter(name).bfloat16())


def test_adapters_move_to_the_weights_as_they_came(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    trained = adapted(tiny_llama(), LLAMA)
    coarse = copy.deepcopy(trained)
    with torch.no_grad():
        for name, parameter in coarse.named_parameters():
            if "lora" not in name:
                parameter.copy_((parameter * 8).round() / 8)  # few bits
    whole = on_whole_weights(coarse, ModelConfig(path=str(tmp_path), trainable=TrainableConfig(mode="lora"), quantise="8bit"))
    assert not torch.allclose(logits(coarse), logits(trained), atol=1e-3)
    assert torch.equal(logits(whole), logits(trained))


def test_a_model_without_adapters_has_no_form_to_choose() -> None:
    for wanted in ("adapter", "merged"):
        with pytest.raises(ConfigError, match=f"--{wanted} needs a run with model.trainable.mode lora; found one without adapters"):
            form_of(tiny_llama(), wanted)


def test_adapters_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    lm = adapted(tiny_llama(), LLAMA)
    with torch.no_grad():
        next(p for name, p in lm.named_parameters() if "lora_B" in name).fill_(float("inf"))
    with pytest.raises(ModelError, match="must add up with the weights to finite numbers"):
        write_model(lm, "merged", "float32", tmp_path)


def test_the_tokenizer_is_the_original_one(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "base")
    tiny_llama().save_pretrained(tmp_path / "base")
    config = ModelConfig(path=str(tmp_path / "base"))
    load_lm(config, None)
    write_tokenizer(tmp_path / "base", config, tmp_path / "out")
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.padding_side == "left"
    assert again.chat_template == tokenizer.chat_template
    text = "Where was Ann Lee born?"
    assert again(text).input_ids == tokenizer(text).input_ids


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with redirected(Hub(tmp_path_factory.mktemp("hub"), registry=False)) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "targets"), [("gemma-2-2b", LLAMA), ("llama-3.1-8b", LLAMA), ("gpt2-small", GPT2)])
def test_models_of_the_hub_go_out_whole_merged_and_as_adapter(hub: Hub, tmp_path: Path, name: str, targets: list[str]) -> None:
    from peft import AutoPeftModelForCausalLM

    hub.need(name)
    attention = {"attn_implementation": "eager"} if SHAPES[name].kind == "gemma2" else {}
    config = ModelConfig(path=SHAPES[name].repo, attention="eager" if attention else None)
    lm, _ = load_lm(config, None)
    before = logits(lm)
    write_model(copy.deepcopy(lm), "whole", "float32", tmp_path / "whole")
    write_tokenizer(SHAPES[name].repo, config, tmp_path / "whole")
    assert torch.equal(logits(loaded(tmp_path / "whole", **attention)), before)
    lm = adapted(lm, targets)
    expected = logits(lm)
    write_model(copy.deepcopy(lm), "adapter", "float32", tmp_path / "adapter")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", **attention)), expected)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == SHAPES[name].repo
    write_model(lm, "merged", "float32", tmp_path / "merged")
    assert (logits(loaded(tmp_path / "merged", **attention)) - expected).abs().max() <= MERGED * expected.abs().max()
