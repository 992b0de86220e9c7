from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import PAD, tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama, tiny_tokenizer
from unlearn.config.schema import ModelConfig
from unlearn.errors import ModelError
from unlearn.models.lm import load_lm


def saved(path, lm=None, tokenizer=None):
    (lm or tiny_llama()).save_pretrained(path)
    (tokenizer or tiny_tokenizer()).save_pretrained(path)
    return path


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_what_was_saved_comes_back_frozen(tmp_path, make):
    original = make()
    saved(tmp_path, original)
    lm, tokenizer = load_lm(ModelConfig(path=str(tmp_path)), None)
    batch = tiny_batch()
    with torch.no_grad():
        torch.testing.assert_close(lm(batch.input_ids_BT).logits, original(batch.input_ids_BT).logits)
    assert not lm.training
    assert not any(p.requires_grad for p in lm.parameters())
    assert type(lm) is type(original)
    assert tokenizer.is_fast
    assert tokenizer.padding_side == "right"
    text = "Question: Where was Ann Lee born?\nAnswer: Paris"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


def test_the_sources_model_is_the_default(tmp_path):
    saved(tmp_path / "source", tiny_llama(layers=2))
    saved(tmp_path / "own", tiny_llama(layers=3))
    assert load_lm(ModelConfig(), tmp_path / "source")[0].config.num_hidden_layers == 2
    assert load_lm(ModelConfig(path=str(tmp_path / "own")), tmp_path / "source")[0].config.num_hidden_layers == 3


def test_dtype_and_attention(tmp_path):
    saved(tmp_path)
    assert load_lm(ModelConfig(path=str(tmp_path)), None)[0].dtype == torch.float32
    lm, _ = load_lm(ModelConfig(path=str(tmp_path), dtype="bfloat16", attention="eager"), None)
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    assert lm.config._attn_implementation == "eager"


def test_gemma2_gets_the_attention_that_knows_soft_capping(tmp_path):
    saved(tmp_path, tiny_gemma2())
    assert load_lm(ModelConfig(path=str(tmp_path)), None)[0].config._attn_implementation == "eager"


def test_a_tokenizer_from_elsewhere_and_a_stand_in_for_padding(tmp_path):
    saved(tmp_path / "lm")
    bare = tiny_tokenizer()
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "tokenizer")
    lm, tokenizer = load_lm(ModelConfig(path=str(tmp_path / "lm"), tokenizer=str(tmp_path / "tokenizer")), None)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert lm.config.pad_token_id == lm.generation_config.pad_token_id == 2
    assert load_lm(ModelConfig(path=str(tmp_path / "lm")), None)[1].pad_token_id == PAD


def test_no_model_is_named():
    with pytest.raises(ModelError, match="model.path must name a language model, since the data source brings none; found null"):
        load_lm(ModelConfig(), None)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./here", "a/b/c"])
def test_a_directory_that_is_not_there(name):
    with pytest.raises(ModelError, match=rf"model.path must be a directory or a hub id \(owner/name\); found no directory at {name}"):
        load_lm(ModelConfig(path=name), None)


def test_a_run_is_no_model(tmp_path):
    (tmp_path / "status").write_text('{"state": "finished"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"model.path must be a model; found a run in .*: unlearn export .* FOLDER\."):
        load_lm(ModelConfig(path=str(tmp_path)), None)


def test_the_sources_model_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="The data source's language model must be a directory; found none at .*gone"):
        load_lm(ModelConfig(), tmp_path / "gone")


def test_a_hub_id_offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="someone/no-such-model could not be loaded: HF_HUB_OFFLINE is set; OSError") as caught:
        load_lm(ModelConfig(path="someone/no-such-model"), None)
    assert "\n" not in str(caught.value)


def test_missing_weights(tmp_path):
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"must hold every weight of a LlamaForCausalLM; found none for model.layers.1.mlp.down_proj.weight \(1 missing\)"
    ):
        load_lm(ModelConfig(path=str(tmp_path)), None)


def test_damaged_weights(tmp_path):
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match="could not be loaded: SafetensorError"):
        load_lm(ModelConfig(path=str(tmp_path)), None)


def test_a_directory_without_a_model_or_a_tokenizer(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match=r"model.path .*tokenizer could not be loaded"):
        load_lm(ModelConfig(path=str(tmp_path / "tokenizer")), None)
    tiny_llama().save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelError, match=r"tokenizer of model.path .*lm could not be loaded"):
        load_lm(ModelConfig(path=str(tmp_path / "lm")), None)


def test_more_tokens_than_embeddings(tmp_path):
    saved(tmp_path, tiny_llama(vocab_size=300))
    with pytest.raises(ModelError, match=r"at most as many entries as the model has embeddings \(300\); found 400"):
        load_lm(ModelConfig(path=str(tmp_path)), None)


def test_an_unknown_kind_of_model(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "no-such-type"}))
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        load_lm(ModelConfig(path=str(tmp_path)), None)
    assert "\n" not in str(caught.value)
