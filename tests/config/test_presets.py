"""The files of configs/models and configs/runs: every combination loads; what they name and what they say about memory is true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from unlearn.config.load import load_config
from unlearn.config.schema import RunConfig
from unlearn.registry import entries

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = {path.stem: path for path in sorted((CONFIGS / "models").glob("*.yaml"))}
RUNS = {path.stem: path for path in sorted((CONFIGS / "runs").glob("*.yaml"))}
NAMED = ("gemma-2-2b", "gemma-2-2b-it", "gemma-2-9b", "gemma-2-9b-it", "llama-3.1-8b", "llama-3.1-8b-instruct", "gpt2-small")
GEMMA: dict[str, Any] = {"vocab_size": 256000}
TRUE: dict[str, dict[str, Any]] = {
    "gemma-2-2b": {**GEMMA, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26},
    "gemma-2-9b": {
        **GEMMA, "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "llama-3.1-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "gpt2-small": {},
}  # fmt: skip
"""Sizes of the public models, where they are not the defaults of their classes."""
LATENTS = {"width_16k": 16384, "_8x": 8 * 4096, "hook_resid_post": 32768}
"""Latents of an SAE, by a part of its id."""


def preset(model: str, run: str = "rwku", *overrides: str) -> RunConfig:
    return load_config([MODELS[model], RUNS[run]], ["data.root=DIR", *overrides])


def family(model: str) -> str:
    return re.sub(r"-(it|instruct)$", "", model)


@pytest.fixture(scope="module")
def known() -> Any:
    """What the installed sae_lens knows about releases."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()


def test_what_there_is() -> None:
    assert set(MODELS) == set(NAMED)
    assert set(RUNS) == {"rwku", "tofu", "popqa", "wikidata"}


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize("model", list(MODELS))
def test_every_combination_loads(model: str, run: str) -> None:
    config = preset(model, run)
    assert (config.name, config.out) == (run, f"runs/{model}")
    assert config.data.source == run
    assert run in entries("source")
    assert config.model.path is not None
    assert config.sae.layer is not None
    assert config.method.name == "sae_guided"


@pytest.mark.parametrize("model", list(MODELS))
def test_a_preset_says_what_it_is_for(model: str) -> None:
    text, config = MODELS[model].read_text(encoding="utf-8"), preset(model)
    assert f"configs/models/{model}.yaml" in text
    assert f"output of block {config.sae.layer}" in text
    assert "Any other pair: model.path" in text
    assert config.model.chat.template == ("always" if model != family(model) else "never")
    if model.startswith("gemma"):
        assert (config.model.attention, config.model.dtype) == ("eager", "bfloat16")
    assert config.method.position == "entity_end"  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", list(MODELS))
def test_releases_and_ids_are_those_of_sae_lens(known: Any, model: str) -> None:
    from tests.architectures.saes import layer_of

    config, text = preset(model), MODELS[model].read_text(encoding="utf-8")
    release, sae_id = str(config.sae.release), str(config.sae.sae_id)
    assert layer_of(sae_id) == config.sae.layer
    assert family(known[release].model.rpartition("/")[2].lower()) == family(model)
    pairs = {(release, sae_id)}
    for line in text.split("\n"):
        said = dict(re.findall(r"\bsae\.(release|sae_id)=([\w./-]*\w)", line))
        if said:
            pairs.add((said.get("release", release), said.get("sae_id", sae_id)))
    for named, one in pairs:
        assert named in known
        assert one in known[named].saes_map
    if model.startswith("gemma"):
        assert len(pairs) == 2, "16k and the next width"


@pytest.mark.slow
@pytest.mark.parametrize("model", list(MODELS))
def test_what_is_said_about_memory(model: str) -> None:
    """Counted on the public model's own shapes, without its weights."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

    from unlearn.models.decoder import blocks_of
    from unlearn.models.trainable import select_trainable

    config, text = preset(model).model, MODELS[model].read_text(encoding="utf-8")
    layer, width = preset(model).sae.layer, TRUE[family(model)].get("hidden_size", 768)
    classes = {"gemm": Gemma2Config, "llam": LlamaConfig, "gpt2": GPT2Config}
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(classes[model[:4]](**TRUE[family(model)]))
        total = sum(p.numel() for p in lm.parameters())
        linear = sum(p.numel() for p in blocks_of(lm).parameters() if p.dim() == 2)
        _, report = select_trainable(lm, config, layer)
    (latents,) = [count for part, count in LATENTS.items() if part in str(preset(model).sae.sae_id)]
    each = {"float32": 4, "bfloat16": 2}[config.dtype]
    expected = {
        r"weights ([\d.]+) GB, SAE": total * each,
        r"SAE ([\d.]+) GB": 4 * latents * (2 * width + 2),
        r"AdamW (?:of blocks 0 to 8 )?([\d.]+) GB": report.n_parameters * (16 if config.trainable.mode == "lora" else 12),
    }
    if config.trainable.mode == "lora":
        expected |= {r"nf4.*?(?:weights|take) ?(?:take)? ?([\d.]+) GB": 2 * (total - linear) + 0.516 * linear}
    for pattern, size in expected.items():
        found = re.search(pattern, text)
        assert found, pattern
        assert float(found[1]) == pytest.approx(size / 1e9, rel=0.03, abs=0.006), pattern


def test_the_readmes_commands_load() -> None:
    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^unlearn run (configs/models/.*)$", text, re.MULTILINE)]
    assert commands
    for words in commands:
        files = [CONFIGS.parent / word for word in words if word.endswith(".yaml")]
        assert load_config(files, [word for word in words if "=" in word]).out.startswith("runs/")


@pytest.mark.slow
def test_the_doctors_estimate_agrees() -> None:
    """Its rehearsal of a training step counts the same weights and the same SAE."""
    import torch
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from transformers import Gemma2Config

    from unlearn.estimate.memory import estimate
    from unlearn.estimate.stand_in import Size
    from unlearn.models.sae import FrozenSAE

    model = "gemma-2-2b"
    config, text, sizes = preset(model), MODELS[model].read_text(encoding="utf-8"), TRUE[model]
    with torch.device("meta"):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=sizes["hidden_size"], d_sae=LATENTS["width_16k"], device="meta"))
    found = estimate(config, Gemma2Config(**sizes), sae=FrozenSAE(sae, config.sae.layer), size=Size(rows=8, tokens=32, answer=8)).device
    said = re.search(r"memory: weights ([\d.]+) GB, SAE ([\d.]+) GB", text)
    assert said
    assert found["weights"] / 1e9 == pytest.approx(float(said[1]), rel=0.02)
    assert found["sae"] / 1e9 == pytest.approx(float(said[2]), rel=0.02)
