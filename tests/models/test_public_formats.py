"""Models and SAEs of the true architectures and file formats, found by their public names in a hub cache, offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.architectures import SHAPES, Hub, redirected
from tests.architectures.saes import activations, entry, layer_of, registry
from tests.architectures.texts import corpus
from tests.data.sources.fake_benchmarks import write_popqa
from unlearn.config.load import load_config
from unlearn.config.schema import ChatConfig, LoRAConfig, ModelConfig, SAEConfig, TrainableConfig
from unlearn.data.chat import chat_format
from unlearn.data.labels import Rule
from unlearn.data.reader import Reader
from unlearn.data.tokenize import TokenRow, batches
from unlearn.errors import ModelError
from unlearn.label import Asker
from unlearn.models.capture import capture
from unlearn.models.forward import generate
from unlearn.models.lm import load_lm
from unlearn.models.sae import load_sae
from unlearn.models.trainable import select_trainable
from unlearn.types import PromptFormat, Row

pytestmark = pytest.mark.slow
NAMES = sorted(SHAPES)


def saes_of(name: str) -> tuple[tuple[str, str], ...]:
    """An instruction-tuned model without SAEs of its own goes with those of its base."""
    shape = SHAPES[name]
    return shape.saes or SHAPES[str(shape.of)].saes


def test_gemma_2_as_in_public(small_hub: Hub) -> None:
    small_hub.need("gemma-2-2b")
    lm, tokenizer = load_lm(ModelConfig(path="google/gemma-2-2b"), None)
    assert (type(lm).__name__, type(tokenizer).__name__) == ("Gemma2ForCausalLM", "GemmaTokenizer")
    config = lm.config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert {*config.layer_types} == {"sliding_attention", "full_attention"}
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    assert tokenizer.tokenize("Orla was ñ") == ["Orla", "▁was", "▁", "<0xC3>", "<0xB1>"]
    assert tokenizer("Orla").input_ids[0] == tokenizer.bos_token_id


def test_llama_and_gpt2_as_in_public(small_hub: Hub) -> None:
    small_hub.need("llama-3.1-8b", "gpt2-small")
    lm, tokenizer = load_lm(ModelConfig(path="meta-llama/Llama-3.1-8B"), None)
    assert type(lm).__name__ == "LlamaForCausalLM"
    assert lm.config.num_key_value_heads < lm.config.num_attention_heads
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    lm, tokenizer = load_lm(ModelConfig(path="openai-community/gpt2"), None)
    assert (type(lm).__name__, type(tokenizer).__name__) == ("GPT2LMHeadModel", "GPT2Tokenizer")
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("name", NAMES)
def test_every_sae_reconstructs_the_layer_that_it_names(small_hub: Hub, name: str) -> None:
    small_hub.need(name)
    lm, tokenizer = load_lm(ModelConfig(path=SHAPES[name].repo), None)
    for release, sae_id in saes_of(name):
        sae = load_sae(SAEConfig(release=release, sae_id=sae_id), None)
        assert sae.layer == layer_of(sae_id)
        x = activations(lm, tokenizer, sae.layer)
        assert ((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()).item() < 0.05


def test_llama_scope_is_scaled_by_the_registrys_factor(small_hub: Hub) -> None:
    small_hub.need("llama-3.1-8b")
    ((release, sae_id),) = SHAPES["llama-3.1-8b"].saes
    files = next(small_hub.cache.glob("models--fnlp--*/snapshots/*/*12R-8x"))
    from safetensors.torch import load_file

    saved, factor = load_file(files / "checkpoints" / "final.safetensors"), entry(release, sae_id)["norm_scaling_factor"]
    sae = load_sae(SAEConfig(release=release, sae_id=sae_id), None)
    torch.testing.assert_close(sae.sae.W_enc, saved["encoder.weight"].T * factor)
    torch.testing.assert_close(sae.sae.b_dec, saved["decoder.bias"] / factor)
    assert sae.normalisation == "none"


def test_a_hub_id_with_saelens_directories_in_the_place_of_a_release(small_hub: Hub) -> None:
    small_hub.need("gpt2-small")
    ((release, sae_id),) = SHAPES["gpt2-small"].saes
    by_name = load_sae(SAEConfig(release=release, sae_id=sae_id), None)
    by_id = load_sae(SAEConfig(release=registry()[release]["repo_id"], sae_id=entry(release, sae_id)["path"]), None)
    assert (by_id.layer, by_id.normalisation, by_id.architecture) == (by_name.layer, "layer_norm", "topk")
    assert torch.equal(by_id.sae.W_enc, by_name.sae.W_enc)


def test_gemma_scope_at_its_true_size_with_the_true_registry(tmp_path: Path) -> None:
    """2304 wide with 16384 latents: nothing about the registry is changed, only the cache is another one."""
    from tests.architectures.hub import publish

    release, sae_id, width, latents = "gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical", 2304, 16384
    folder = tmp_path / "files" / entry(release, sae_id)["path"]
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    arrays = {name: np.zeros(size, dtype=np.float32) for name, size in (("b_enc", latents), ("b_dec", width))}
    arrays["W_enc"] = draw.standard_normal((width, latents), dtype=np.float32)
    arrays["W_dec"] = np.zeros((latents, width), dtype=np.float32)
    arrays["threshold"] = np.full(latents, 0.5, dtype=np.float32)
    np.savez(folder / "params.npz", **arrays)  # type: ignore[arg-type]
    hub = Hub(tmp_path / "hub", registry=False)
    publish(tmp_path / "files", hub.cache, registry()[release]["repo_id"])
    with redirected(hub):
        sae = load_sae(SAEConfig(release=release, sae_id=sae_id), None)
    assert (sae.layer, sae.d_in, sae.d_sae, sae.architecture) == (12, width, latents, "jumprelu")
    x = torch.ones(1, width)
    pre = torch.from_numpy(arrays["W_enc"].sum(0))
    torch.testing.assert_close(sae.encode(x, torch.arange(8))[0], pre[:8] * (pre[:8] > 0.5), rtol=1e-4, atol=1e-3)


def test_what_is_not_in_the_cache_is_one_sentence(small_hub: Hub) -> None:
    with pytest.raises(ModelError, match="sae.release gemma-scope-2b-pt-res .* could not be loaded"):
        load_sae(SAEConfig(release="gemma-scope-2b-pt-res", sae_id="layer_3/width_16k/average_l0_59"), None)
    with pytest.raises(ModelError, match="model.path google/gemma-2-27b could not be loaded: HF_HUB_OFFLINE is set"):
        load_lm(ModelConfig(path="google/gemma-2-27b"), None)


@pytest.mark.parametrize("name", ["gemma-2-2b-it", "llama-3.1-8b-instruct"])
def test_an_answer_ends_with_the_turn_also_where_the_generation_config_does_not_say_so(small_hub: Hub, name: str) -> None:
    small_hub.need(name)
    lm, tokenizer = load_lm(ModelConfig(path=SHAPES[name].repo), None)
    end = tokenizer.convert_tokens_to_ids({"gemma2": "<end_of_turn>", "llama": "<|eot_id|>"}[SHAPES[name].kind])
    assert end in lm.generation_config.eos_token_id, "as the public models have it"
    lm.generation_config.eos_token_id = tokenizer.eos_token_id = None
    handle = lm.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits.index_fill(-1, torch.tensor(end), 1e4))
    said = {}
    for template in ("auto", "never"):
        fmt = chat_format(PromptFormat(append_eos=False), tokenizer, ChatConfig(template=template))
        reader = Reader(tokenizer=tokenizer, prompt_format=fmt, refusals=(), max_length=256, batch_size=4, max_new_tokens=3)
        row = Row(row_id=0, entity="", prompt="Where was Orla Quill born?", answer="In Brandt.")
        (tokens,) = reader.tokens([row])
        (said[template],) = generate(lm, tokenizer, [tokens.ids[: tokens.answer_start]], 3, stop_ids=reader.stop_ids)
    handle.remove()
    assert said == {"auto": [], "never": [end] * 3}


def test_known_and_unknown_are_asked_for_in_the_chat_template_too(small_hub: Hub, tmp_path: Path) -> None:
    small_hub.need("gemma-2-2b-it")
    write_popqa(tmp_path)
    data = {"source": "popqa", "root": str(tmp_path)}
    config = load_config({"name": "x", "data": data, "model": {"path": "google/gemma-2-2b-it"}, "method": {"name": "none"}})
    asker = Asker(config, Rule())
    ids = asker._ids("Where was Orla Quill born?")
    turn = [{"role": "user", "content": "Where was Orla Quill born?"}]
    said = asker.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert ids == asker.tokenizer(said, add_special_tokens=False).input_ids
    assert asker.settings["question_format"] == said.replace("Where was Orla Quill born?", "{question}")


@pytest.mark.parametrize("name", ["gemma-2-2b", "llama-3.1-8b", "gpt2-small"])
def test_adapters_early_exit_and_checkpointing_together(small_hub: Hub, name: str) -> None:
    """What an SAE loss trains: every adapter up to its layer has a gradient, and the same one when activations are computed again."""
    small_hub.need(name)
    ((release, sae_id), *_) = SHAPES[name].saes
    sae = load_sae(SAEConfig(release=release, sae_id=sae_id), None)
    targets = ["c_attn", "c_proj", "c_fc"] if name.startswith("gpt2") else LoRAConfig().targets
    found = {}
    for again in (False, True):
        adapters = {"trainable": TrainableConfig(mode="lora"), "lora": LoRAConfig(rank=2, targets=targets)}
        config = ModelConfig(path=SHAPES[name].repo, gradient_checkpointing=again, **adapters)  # type: ignore[arg-type]
        lm, tokenizer = load_lm(config, None)
        torch.manual_seed(0)
        lm, report = select_trainable(lm, config, sae.layer)
        with torch.no_grad():
            for key, weight in lm.named_parameters():
                if "lora_B" in key:
                    weight.copy_(torch.linspace(-0.01, 0.01, weight.numel()).view_as(weight))
        ids = [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids] for text in corpus()[:4]]
        ((_, batch),) = batches([TokenRow(tuple(row), 1, len(row) - 2, i) for i, row in enumerate(ids)], 4, 0)
        sae.preactivations(capture(lm, batch, sae.layer, batch.entity_end_B)).square().mean().backward()
        found[again] = {key: lm.get_parameter(key).grad for key in report.names}
        assert max(report.blocks) == sae.layer
    for key, gradient in found[False].items():
        assert gradient.abs().sum() > 0, key
        torch.testing.assert_close(found[True][key], gradient, rtol=1e-3, atol=1e-6 * float(gradient.abs().max()) + 1e-9)
