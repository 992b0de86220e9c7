"""8 and 4 bits through bitsandbytes itself, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama, tiny_tokenizer
from unlearn.config.schema import LoRAConfig, ModelConfig, OptimConfig, TrainableConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.models import bits
from unlearn.models.bits import check_bits, make_optimiser, weights_name
from unlearn.models.capture import capture
from unlearn.models.decoder import adapters_off, blocks_of, output_head
from unlearn.models.export import ADAPTER, MERGED, form_of, write_model
from unlearn.models.forward import forward
from unlearn.models.lm import load_lm
from unlearn.models.trainable import select_trainable

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LORA = TrainableConfig(mode="lora")


def wide_gemma2() -> Any:
    """Every projection takes and gives a multiple of 64 numbers, as bitsandbytes wants it on the CPU."""
    config = tiny_gemma2(d_model=64).config
    config.num_key_value_heads, config.head_dim = config.num_attention_heads, 16
    torch.manual_seed(0)
    return type(tiny_gemma2())(config).eval()


FAMILIES = {"llama": lambda: tiny_llama(d_model=64), "gemma2": wide_gemma2, "gpt2": lambda: tiny_gpt2(d_model=64)}
pytestmark = pytest.mark.filterwarnings("ignore:.*MatMul8bitLt:UserWarning")


def loaded(folder: Path, family: str, quantise: str | None, **options: Any) -> Any:
    if not folder.is_dir():
        FAMILIES[family]().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return load_lm(ModelConfig(path=str(folder), quantise=quantise, trainable=LORA, **options), None)[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(("quantise", "stored", "error"), [("8bit", torch.int8, 0.05), ("nf4", torch.uint8, 0.4)])
def test_the_blocks_are_in_few_bits_and_compute_nearly_the_same(
    tmp_path: Path, family: str, quantise: str, stored: Any, error: float
) -> None:
    whole, small = loaded(tmp_path / "lm", family, None), loaded(tmp_path / "lm", family, quantise)
    assert {p.dtype for p in blocks_of(small).parameters() if p.dim() == 2 and "norm" not in str(p)} == {stored}
    assert output_head(small).weight.dtype == torch.float32
    assert not small.training
    assert not any(p.requires_grad for p in small.parameters())
    batch = tiny_batch()
    with torch.no_grad():
        there, here = capture(whole, batch, 2), capture(small, batch, 2)
    assert 0 < float((here - there).norm() / there.norm()) < error


@pytest.mark.slow
@pytest.mark.parametrize("quantise", ["8bit", "nf4"])
def test_a_quantised_run_exports_its_adapter(tmp_path: Path, quantise: str) -> None:
    lm = loaded(tmp_path / "lm", "llama", quantise)
    lm, _ = select_trainable(lm, ModelConfig(quantise=quantise, trainable=LORA), None)
    assert form_of(lm, None) == form_of(lm, ADAPTER) == ADAPTER
    with pytest.raises(ConfigError, match="--merged needs weights in full precision; found a run with model.quantise"):
        form_of(lm, MERGED)
    (tmp_path / "out").mkdir()
    write_model(lm, ADAPTER, "float32", tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_widths_that_the_cpu_cannot_multiply(tmp_path: Path) -> None:
    tiny_llama(d_model=32).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"needs layers of widths that are multiples of 64 on the CPU; found \(32, 32\) in model.layers.0"):
        load_lm(ModelConfig(path=str(tmp_path), quantise="nf4"), None)


@pytest.mark.slow
@pytest.mark.parametrize("quantise", ["8bit", "nf4"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_train_on_a_quantised_base(tmp_path: Path, quantise: str, checkpointing: bool) -> None:
    config = ModelConfig(quantise=quantise, trainable=LORA, lora=LoRAConfig(rank=4), gradient_checkpointing=checkpointing)
    lm = loaded(tmp_path / "lm", "gemma2", quantise)
    n_total = sum(p.numel() for p in FAMILIES["gemma2"]().parameters())
    lm, report = select_trainable(lm, config, None)
    assert report.n_total == n_total + report.n_parameters
    batch = tiny_batch()
    with torch.no_grad():
        capture(lm, batch, 1)  # measuring comes first in a run

    def loss() -> torch.Tensor:
        out = forward(lm, batch)
        return nn.functional.cross_entropy(out.logits_AV, out.targets_A)

    frozen = {name: p.clone() for name, p in lm.named_parameters() if not p.requires_grad}
    optimiser = make_optimiser(OptimConfig(lr=1e-2), [p for p in lm.parameters() if p.requires_grad])
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in lm.named_parameters() if name in frozen)
    with adapters_off(lm), torch.no_grad():
        assert loss().item() == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_optimisers_come_down_a_bowl(name: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(128, 64))
    optimiser = make_optimiser(OptimConfig(name=name, lr=0.05, betas=[0.9, 0.95], weight_decay=0.01), [weight])
    (group,) = optimiser.param_groups
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.05, (0.9, 0.95), 0.01)
    start = weight.square().mean().item()
    for _ in range(60):
        optimiser.zero_grad()
        weight.square().sum().backward()
        optimiser.step()
    assert weight.square().mean().item() < 0.1 * start
    kinds = {value.dtype for value in optimiser.state[weight].values() if isinstance(value, torch.Tensor) and value.shape == weight.shape}
    assert kinds == {torch.uint8 if name == "adamw_8bit" else torch.float32}


def check(
    model: ModelConfig | None = None, optim: str = "adamw", device: torch.device = GPU, strategy: str = "auto", trains: bool = True
) -> None:
    check_bits(model or ModelConfig(), OptimConfig(name=optim), device, strategy, trains)


def test_what_goes_together() -> None:
    check()
    check(ModelConfig(quantise="nf4", trainable=LORA), "paged_adamw_8bit", GPU, "ddp")
    check(ModelConfig(quantise="8bit", trainable=LORA), "adamw_8bit", CPU)
    check(ModelConfig(quantise="8bit"), trains=False)


def test_what_does_not() -> None:
    with pytest.raises(ConfigError, match="model.trainable must be mode: lora .* with model.quantise 'nf4', .*; found mode: blocks"):
        check(ModelConfig(quantise="nf4"))
    with pytest.raises(ConfigError, match="found mode: lora, embeddings: true"):
        check(ModelConfig(quantise="nf4", trainable=TrainableConfig(mode="lora", embeddings=True)))
    with pytest.raises(ConfigError, match="optim.name 'paged_adamw' needs a CUDA device, whose memory it pages; found cpu: take"):
        check(optim="paged_adamw", device=CPU)
    with pytest.raises(ConfigError, match="trainer.strategy must not be fsdp2 with optim.name 'adamw_8bit', which needs whole weights"):
        check(optim="adamw_8bit", strategy="fsdp2")
    with pytest.raises(ConfigError, match="model.quantise must be one of 8bit, nf4; found '4bit'"):
        ModelConfig(quantise="4bit")
    with pytest.raises(ConfigError, match="optim.name must be one of adamw, .*; found 'sgd'"):
        OptimConfig(name="sgd")


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "find_spec", lambda name: None)
    check()
    for wanted in ({"model": ModelConfig(quantise="8bit", trainable=LORA)}, {"optim": "adamw_8bit"}):
        with pytest.raises(ConfigError, match=r"needs bitsandbytes; found it not installed: pip install 'unlearn\[bitsandbytes\]'"):
            check(**wanted)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="optim.name 'adamw_8bit' needs bitsandbytes"):
        make_optimiser(OptimConfig(name="adamw_8bit"), [])


def test_what_is_read_from_a_quantised_model_has_another_name() -> None:
    assert weights_name(ModelConfig(dtype="bfloat16")) == "bfloat16"
    assert weights_name(ModelConfig(dtype="bfloat16", quantise="nf4")) == "bfloat16 nf4"
