from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.models.capture import capture
from unlearn.models.decoder import adapters_off, base_of, blocks_of, evaluating
from unlearn.models.forward import forward
from unlearn.models.trainable import load_trainable_state, parse_blocks, select_trainable, trainable_state


def select(lm, deepest=None, *, lora=None, **options):
    return select_trainable(lm, ModelConfig(trainable=TrainableConfig(**options), lora=lora or LoRAConfig()), deepest)


def blocks_in(names) -> set[int]:
    return {int(found[1]) for name in names if (found := re.search(r"\.(?:layers|h)\.(\d+)\.", name))}


def test_reading_blocks():
    assert parse_blocks(" 0 - 2, 5,1", 8) == (0, 1, 2, 5)
    assert parse_blocks("3", 8) == (3,)
    assert parse_blocks("auto", 4, 1) == (0, 1)
    assert parse_blocks("all", 4, 2) == (0, 1, 2)
    assert parse_blocks("0-7", 8, 3) == (0, 1, 2, 3)


@pytest.mark.parametrize("text", ["", "a", "1-", "-2", "1,,2", "1-2-3", "0.5"])
def test_blocks_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match=rf"model.trainable.blocks must be auto, all, or numbers .*found '{re.escape(text)}'"):
        parse_blocks(text, 8)


@pytest.mark.parametrize(("text", "part"), [("0-8", "0-8"), ("8", "8"), ("5-3", "5-3"), ("0,2-30", "2-30")])
def test_blocks_out_of_range(text, part):
    with pytest.raises(ConfigError, match=rf"must name blocks from 0 to 7, lower end first; found '{part}'"):
        parse_blocks(text, 8)


def test_blocks_that_nothing_reaches():
    with pytest.raises(ConfigError, match=r"must name a block that a loss term reaches \(0 to 1\); found '2-3'"):
        select(tiny_llama(), 1, blocks="2-3")


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
@pytest.mark.parametrize(
    ("blocks", "deepest", "expected"), [("auto", None, {0, 1, 2, 3}), ("auto", 1, {0, 1}), ("1,3", None, {1, 3}), ("1-3", 2, {1, 2})]
)
def test_blocks(make, blocks, deepest, expected):
    lm, report = select(make(), deepest, blocks=blocks)
    trained = {n: p for n, p in lm.named_parameters() if p.requires_grad}
    assert set(report.names) == set(trained)
    assert set(report.blocks) == blocks_in(trained) == expected
    assert set(trained) == {n for n, _ in lm.named_parameters() if blocks_in([n]) & expected}
    assert report.n_parameters == sum(p.numel() for p in trained.values())
    assert report.n_total == sum(p.numel() for p in lm.parameters())


@pytest.mark.parametrize("options", [{}, {"mode": "full"}, {"mode": "modules", "modules": ["mlp"]}, {"mode": "lora"}, {"embeddings": True}])
def test_everything_that_is_trained_gets_a_gradient_from_an_early_loss(options):
    """What DDP needs: no trained weight without a gradient, at any depth."""
    for deepest in (0, 2):
        lm, report = select(tiny_llama(), deepest, **options)
        capture(lm, tiny_batch(), deepest).square().sum().backward()
        assert [n for n in report.names if lm.get_parameter(n).grad is None] == []
        assert max(report.blocks) == deepest


@pytest.mark.parametrize("options", [{}, {"mode": "full"}, {"mode": "modules", "modules": ["mlp"]}, {"mode": "lora"}, {"embeddings": True}])
def test_everything_that_is_trained_gets_a_gradient_from_logits(options):
    lm, report = select(tiny_llama(), None, **options)
    out = forward(lm, tiny_batch())
    nn.functional.cross_entropy(out.logits_AV, out.targets_A).backward()
    assert [n for n in report.names if lm.get_parameter(n).grad is None] == []


def test_full():
    lm, report = select(tiny_llama(), mode="full", blocks="1")
    assert report.n_parameters == report.n_total
    lm, report = select(tiny_gpt2(), 1, mode="full")
    outside = {n for n in report.names if not blocks_in([n])}
    assert outside == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert report.blocks == (0, 1)


def test_embeddings():
    _, report = select(tiny_llama(), blocks="0", embeddings=True)
    assert {n for n in report.names if not blocks_in([n])} == {"model.embed_tokens.weight", "lm_head.weight"}
    _, report = select(tiny_llama(), 1, blocks="0", embeddings=True)
    assert {n for n in report.names if not blocks_in([n])} == {"model.embed_tokens.weight"}
    lm, report = select(tiny_gemma2(), 1, blocks="0", embeddings=True)
    assert {n for n in report.names if not blocks_in([n])} == {"model.embed_tokens.weight"}
    assert lm.lm_head.weight.requires_grad  # tied


def test_modules():
    _, report = select(tiny_llama(), 2, mode="modules", modules=[r"mlp\.down_proj", "input_layernorm"], blocks="1-3")
    assert report.names == tuple(f"model.layers.{n}.{part}.weight" for n in (1, 2) for part in ("mlp.down_proj", "input_layernorm"))


def test_modules_that_match_nothing_or_cannot_be_read():
    with pytest.raises(ConfigError, match=r"must match parameters of the chosen blocks \(such as model.layers.0.self_attn.*found 'mpl'"):
        select(tiny_llama(), mode="modules", modules=["mlp", "mpl"])
    with pytest.raises(ConfigError, match="embed_tokens"):
        select(tiny_llama(), mode="modules", modules=["embed_tokens"])
    with pytest.raises(ConfigError, match=r"must hold regular expressions; found '\('"):
        select(tiny_llama(), mode="modules", modules=["("])
    with pytest.raises(ConfigError, match="must leave something to train; found nothing"):
        select(tiny_llama(), mode="modules", modules=[])


def test_lora_attaches_to_reached_blocks_only():
    batch = tiny_batch()
    lm = tiny_llama()
    before = forward(lm, batch).logits_AV.detach()
    wrapped, report = select(lm, 1, mode="lora", lora=LoRAConfig(rank=3, alpha=6.0, targets=["q_proj", "down_proj"]))
    assert report.blocks == (0, 1)
    assert all("lora_" in n for n in report.names)
    assert len(report.names) == 2 * 2 * 2
    assert blocks_in(n for n, m in wrapped.named_modules() if hasattr(m, "lora_A")) == {0, 1}
    down = base_of(wrapped).model.layers[1].mlp.down_proj
    assert down.lora_A["default"].weight.shape == (3, 64)
    assert down.scaling["default"] == 2.0
    torch.testing.assert_close(forward(wrapped, batch).logits_AV, before)
    _, report = select(tiny_llama(), None, mode="lora", blocks="2-3")
    assert report.blocks == (2, 3)


def test_lora_scaling_and_eval_mode():
    lm = tiny_llama().eval()
    wrapped, _ = select(lm, mode="lora", lora=LoRAConfig(rank=4, alpha=6.0, rslora=True, dropout=0.5, targets=["q_proj"]))
    layer = base_of(wrapped).model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 3.0
    assert layer.lora_dropout["default"].p == 0.5
    assert not wrapped.training
    assert not layer.training


def test_lora_on_gpt2_conv1d():
    batch = tiny_batch()
    lm = tiny_gpt2()
    wrapped, report = select(lm, 2, mode="lora", lora=LoRAConfig(rank=2, targets=["c_attn", "c_fc"]))
    assert report.blocks == (0, 1, 2)
    capture(wrapped, batch, 2).sum().backward()
    assert all(wrapped.get_parameter(n).grad is not None for n in report.names)


def test_lora_targets_that_do_not_exist():
    message = r"model.lora.targets must name linear modules .*\(c_attn, c_fc, c_proj\); found q_proj, k_proj"
    with pytest.raises(ConfigError, match=message):
        select(tiny_gpt2(), mode="lora")
    with pytest.raises(ConfigError, match="found none"):
        select(tiny_llama(), mode="lora", lora=LoRAConfig(targets=[]))


def test_lora_with_embeddings():
    _, report = select(tiny_llama(), 1, mode="lora", embeddings=True)
    assert [n for n in report.names if "lora_" not in n] == ["base_model.model.model.embed_tokens.weight"]


def test_selecting_again_starts_over():
    lm, _ = select(tiny_llama(), mode="full")
    _, report = select(lm, blocks="0")
    assert report.blocks == (0,)
    assert blocks_in(report.names) == {0}


@pytest.mark.parametrize("options", [{"blocks": "1"}, {"mode": "lora"}])
def test_state_goes_out_and_in(options):
    lm, report = select(tiny_llama(), 2, **options)
    batch = tiny_batch()
    before = forward(lm, batch).logits_AV.detach()
    state = trainable_state(lm)
    assert set(state) == set(report.names)
    with torch.no_grad():
        for name in report.names:
            lm.get_parameter(name).add_(0.2)
    assert not torch.allclose(forward(lm, batch).logits_AV, before, atol=1e-2)
    load_trainable_state(lm, state)
    torch.testing.assert_close(forward(lm, batch).logits_AV.detach(), before)
    with pytest.raises(ModelError, match=rf"must be those that are trained now \({len(state)}\); found {len(state) - 1} that differ at"):
        load_trainable_state(lm, dict(list(state.items())[1:]))
    first = next(iter(state))
    with pytest.raises(ModelError, match=f"differ at {re.escape(first)}"):
        load_trainable_state(lm, {**state, first: torch.zeros(1)})


ADAPTERS = {"trainable": TrainableConfig(mode="lora", blocks="1-2"), "lora": LoRAConfig(rank=2, dropout=0.5, targets=["c_attn", "c_proj"])}


def adapted_gpt2(**options):
    """GPT-2 with dropout everywhere, as the public one has it, and adapters that change what it computes."""
    lm = tiny_gpt2()
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    lm, _ = select_trainable(lm, ModelConfig(**ADAPTERS, **options), 2)
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    return lm


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_adapters_drop_anything_out_while_training(checkpointing):
    lm, batch = adapted_gpt2(gradient_checkpointing=checkpointing), tiny_batch()
    torch.manual_seed(0)
    first, second = (capture(lm, batch, 2).detach() for _ in range(2))
    assert not torch.equal(first, second)
    with adapters_off(lm):
        torch.testing.assert_close(capture(lm, batch, 2), capture(lm, batch, 2), rtol=0, atol=0)
    with evaluating(lm):
        torch.testing.assert_close(capture(lm, batch, 2), capture(lm, batch, 2), rtol=0, atol=0)
    assert not torch.equal(capture(lm, batch, 2), capture(lm, batch, 2)), "measuring must not end training mode"


def test_checkpointing_is_on_in_train_mode_only_and_keeps_no_graph_below_what_is_trained():
    lm, batch = adapted_gpt2(gradient_checkpointing=True), tiny_batch()
    calls = []
    for n, block in enumerate(blocks_of(lm)):
        plain = block._gradient_checkpointing_func
        block._gradient_checkpointing_func = lambda *args, n=n, plain=plain, **kwargs: calls.append(n) or plain(*args, **kwargs)
    inputs = []
    handle = blocks_of(lm)[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0].requires_grad))
    capture(lm, batch, 2).square().sum().backward()
    handle.remove()
    assert calls == [0, 1, 2]
    assert inputs == [False]
    trained = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    assert all(p.grad.abs().sum() > 0 for name, p in trained.items())
    calls.clear()
    with evaluating(lm):
        capture(lm, batch, 2)
    assert calls == []


def test_a_family_that_cannot_compute_activations_again(monkeypatch):
    lm = tiny_llama()
    monkeypatch.setattr(type(lm), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="model.gradient_checkpointing must be false for a LlamaForCausalLM, which cannot do it"):
        select_trainable(lm, ModelConfig(gradient_checkpointing=True), None)


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_their_rank():
    from peft.tuners.lora import LoraLayer

    by_rank = {}
    for rslora in (False, True):
        lm, _ = select(tiny_llama(), 1, mode="lora", lora=LoRAConfig(rank=4, alpha=8.0, rslora=rslora))
        by_rank[rslora] = {m.scaling["default"] for m in lm.modules() if isinstance(m, LoraLayer)}
    assert by_rank == {False: {8.0 / 4}, True: {8.0 / 4**0.5}}
