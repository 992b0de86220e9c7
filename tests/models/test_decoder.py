from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import VOCAB, tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from unlearn.errors import ModelError
from unlearn.models.decoder import base_of, block_prefix, blocks_of, decoder_of, evaluating, head, hidden_size

FAMILIES = {"llama": tiny_llama, "gemma2": tiny_gemma2, "gpt2": tiny_gpt2}


@pytest.mark.parametrize(
    ("family", "decoder", "blocks"), [("llama", "model", "layers"), ("gemma2", "model", "layers"), ("gpt2", "transformer", "h")]
)
def test_parts_are_found(family, decoder, blocks):
    lm = FAMILIES[family](layers=3)
    assert decoder_of(lm) is getattr(lm, decoder)
    assert blocks_of(lm) is getattr(getattr(lm, decoder), blocks)
    assert block_prefix(lm) == f"{decoder}.{blocks}."
    assert hidden_size(lm) == 32


def test_gpt_neox_and_opt_are_found_too():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

    neox = GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    )
    opt = OPTForCausalLM(
        OPTConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=16)
    )
    assert blocks_of(neox) is neox.gpt_neox.layers
    assert blocks_of(opt) is opt.model.decoder.layers


def test_peft_is_looked_through():
    from peft import LoraConfig, get_peft_model

    lm = tiny_llama(layers=2)
    blocks = blocks_of(lm)
    wrapped = get_peft_model(lm, LoraConfig(r=2, target_modules=["q_proj"]))
    assert blocks_of(wrapped) is blocks
    assert base_of(wrapped) is lm
    assert block_prefix(wrapped) == "base_model.model.model.layers."


def test_a_model_without_blocks_is_named():
    with pytest.raises(ModelError, match="must have a ModuleList of blocks called layers, h, blocks, block; found none in Linear"):
        blocks_of(nn.Linear(2, 2))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_head_gives_the_stock_logits(family):
    lm = FAMILIES[family]()
    batch = tiny_batch()
    with torch.no_grad():
        stock = lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
        states = decoder_of(lm)(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).last_hidden_state
        ours = head(lm, states[0])
    torch.testing.assert_close(ours, stock[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "key", "value"), [("cohere", "logit_scale", 0.25), ("granite", "logits_scaling", 4.0)])
def test_head_scales_as_the_family_does(family, key, value):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **sizes, num_key_value_heads=2, pad_token_id=0, **{key: value})
    ).eval()
    batch = tiny_batch()
    with torch.no_grad():
        stock = lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
        states = decoder_of(lm)(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).last_hidden_state
        ours = head(lm, states[0])
        unscaled = lm.lm_head(states[0])
    torch.testing.assert_close(ours, stock[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(unscaled, stock[0], atol=1e-3)


def test_evaluating_gives_back_each_modules_own_mode():
    lm = tiny_llama(layers=2)
    lm.train()
    blocks_of(lm)[0].eval()
    before = [m.training for m in lm.modules()]
    with evaluating(lm):
        assert not any(m.training for m in lm.modules())
        assert not torch.is_grad_enabled()
    assert [m.training for m in lm.modules()] == before
    assert torch.is_grad_enabled()
