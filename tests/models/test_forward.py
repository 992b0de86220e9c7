from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import BOS, EOS, tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama, tiny_tokenizer
from unlearn.errors import ModelError
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of
from unlearn.models.forward import forward, generate

FAMILIES = {"llama": tiny_llama, "gemma2": tiny_gemma2, "gpt2": tiny_gpt2}
family = pytest.mark.parametrize("family", list(FAMILIES))


@family
def test_logits_equal_the_stock_forward_at_answer_positions(family):
    lm, batch = FAMILIES[family](), tiny_batch(rows=5, length=14)
    with torch.no_grad():
        stock = lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
        out = forward(lm, batch)
    expected, targets, rows = [], [], []
    for row in range(5):
        for t in range(1, 14):
            if batch.labels_BT[row, t] != -100:
                expected.append(stock[row, t - 1])
                targets.append(int(batch.labels_BT[row, t]))
                rows.append(row)
    assert len(targets) == 20
    torch.testing.assert_close(out.logits_AV, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert out.targets_A.tolist() == targets
    assert out.row_A.tolist() == rows
    assert out.hidden == {}


@family
def test_each_row_is_what_it_is_alone_without_padding(family):
    lm, batch = FAMILIES[family](), tiny_batch(rows=4, length=14, shortest=9)
    with torch.no_grad():
        out = forward(lm, batch)
        for row in range(4):
            n = int(batch.attention_mask_BT[row].sum())
            alone = lm(batch.input_ids_BT[row : row + 1, :n]).logits[0, n - 5 : n - 1]
            torch.testing.assert_close(out.logits_AV[out.row_A == row], alone, atol=1e-5, rtol=1e-5)


@family
def test_block_outputs_come_along(family):
    lm, batch = FAMILIES[family](), tiny_batch()
    with torch.no_grad():
        out = forward(lm, batch, layers=(1, -1, 3))
        assert set(out.hidden) == {1, -1, 3}
        for layer, hidden in out.hidden.items():
            torch.testing.assert_close(hidden, capture(lm, batch, layer))


def test_the_head_sees_answer_positions_only():
    lm, batch = tiny_llama(), tiny_batch(rows=3)
    shapes = []
    handle = lm.lm_head.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape)))
    out = forward(lm, batch)
    handle.remove()
    assert shapes == [(1, 12, 512)]
    torch.testing.assert_close(lm.lm_head(out.final_AD), out.logits_AV)
    assert not lm.lm_head._forward_pre_hooks


@family
def test_gradients_equal_the_stock_loss(family):
    lm, batch = FAMILIES[family](), tiny_batch()
    lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT).loss.backward()
    expected = {n: p.grad.clone() for n, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    out = forward(lm, batch)
    nn.functional.cross_entropy(out.logits_AV, out.targets_A).backward()
    assert expected
    for name, grad in expected.items():
        torch.testing.assert_close(lm.get_parameter(name).grad, grad, atol=1e-5, rtol=1e-4)


def test_a_batch_without_answers_gives_no_logits():
    batch = tiny_batch(rows=2)
    out = forward(tiny_llama(), batch._replace(labels_BT=torch.full_like(batch.labels_BT, -100)))
    assert out.logits_AV.shape == (0, 512)
    assert out.targets_A.shape == (0,)


def test_a_head_that_cannot_be_followed():
    lm, batch = tiny_llama(), tiny_batch()
    unused = nn.Linear(32, 512)
    lm.get_output_embeddings = lambda: unused
    with pytest.raises(ModelError, match="LlamaForCausalLM must call its output head once, on hidden states .*; found 0 calls"):
        forward(lm, batch)


def naive(lm, prompt: list[int], steps: int, stops: set[int]) -> list[int]:
    """Greedy decoding of one prompt, one whole pass per token."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            token = int(lm(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


PROMPTS = [[BOS, 17, 45, 200, 31, 9, 77], [BOS, 5], [BOS, 300, 12, 12], [BOS, 99, 98, 97, 96, 95, 94, 93, 92, 91], [BOS, 41, 42]]


@family
def test_generation_equals_naive_greedy_decoding(family):
    lm, tokenizer = FAMILIES[family](seed=3), tiny_tokenizer()
    expected = [naive(lm, p, 8, {EOS}) for p in PROMPTS]
    for batch_size in (64, 2, 1):
        assert generate(lm, tokenizer, PROMPTS, 8, batch_size=batch_size) == expected
    assert any(len(answer) == 8 for answer in expected)


@family
def test_generation_stops_at_the_stop_ids(family):
    lm, tokenizer = FAMILIES[family](seed=3), tiny_tokenizer()
    free = generate(lm, tokenizer, PROMPTS, 8)
    stop = free[0][3]
    assert generate(lm, tokenizer, PROMPTS, 8, stop_ids=[stop]) == [naive(lm, p, 8, {EOS, stop}) for p in PROMPTS]
    lm.generation_config.eos_token_id = [stop]
    assert generate(lm, tokenizer, PROMPTS, 8)[0] == free[0][: free[0].index(stop)]


def test_generation_ignores_the_models_sampling_defaults_and_leaves_them():
    lm, tokenizer = tiny_llama(seed=3), tiny_tokenizer()
    expected = generate(lm, tokenizer, PROMPTS, 8)
    config = lm.generation_config
    config.do_sample, config.temperature, config.repetition_penalty, config.no_repeat_ngram_size = True, 5.0, 9.0, 1
    assert generate(lm, tokenizer, PROMPTS, 8) == expected
    assert lm.generation_config is config


def test_generation_leaves_the_training_mode():
    lm, tokenizer = tiny_llama(seed=3), tiny_tokenizer()
    expected = generate(lm, tokenizer, PROMPTS, 4)
    lm.train()
    blocks_of(lm)[1].eval()
    assert generate(lm, tokenizer, PROMPTS, 4) == expected
    assert lm.training
    assert not blocks_of(lm)[1].training
    assert generate(lm, tokenizer, [], 4) == []


def test_generation_with_adapters():
    from peft import LoraConfig, get_peft_model

    lm, tokenizer = tiny_llama(seed=3), tiny_tokenizer()
    before = generate(lm, tokenizer, PROMPTS, 6)
    wrapped = get_peft_model(lm, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    assert generate(wrapped, tokenizer, PROMPTS, 6) == before
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    after = generate(wrapped, tokenizer, PROMPTS, 6)
    assert after != before
    assert after == [naive(wrapped, p, 6, {EOS}) for p in PROMPTS]


def test_generation_ends_with_the_context():
    lm, tokenizer = tiny_gpt2(seed=3), tiny_tokenizer()
    long = [BOS, *range(4, 4 + 251)]
    assert len(generate(lm, tokenizer, [long], 50)[0]) <= 4
    with pytest.raises(ModelError, match="shorter than the model's context of 256 tokens; found 256"):
        generate(lm, tokenizer, [[BOS] * 256], 5)
    with pytest.raises(ModelError, match="at least one token; found none in prompt 1"):
        generate(lm, tokenizer, [[BOS], []], 5)


def test_prompts_of_similar_length_share_a_batch():
    lm, tokenizer = tiny_llama(seed=3), tiny_tokenizer()
    widths = []
    lm.model.register_forward_pre_hook(lambda m, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    generate(lm, tokenizer, [[BOS] * n for n in (9, 2, 8, 3)], 1, batch_size=2)
    assert widths == [3, 9]


def test_sampling_repeats_for_a_seed_and_leaves_the_global_random_state_alone():
    lm, tokenizer = tiny_llama(), tiny_tokenizer()
    prompts = [[BOS, 5, 6, 7], [BOS, 9]]
    state = torch.get_rng_state()
    first = generate(lm, tokenizer, prompts, 12, temperature=1.0, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == generate(lm, tokenizer, prompts, 12, temperature=1.0, seed=3)
    assert first != generate(lm, tokenizer, prompts, 12, temperature=1.0, seed=4)


def test_sampling_draws_from_the_whole_distribution_and_a_low_temperature_is_greedy():
    lm, tokenizer = tiny_llama(), tiny_tokenizer()
    prompt = [BOS, 5, 6, 7]
    with torch.no_grad():
        expected = lm(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    drawn = generate(lm, tokenizer, [prompt] * 4000, 1, batch_size=4000, temperature=1.0)
    counts = torch.bincount(torch.tensor([new[0] for new in drawn if new]), minlength=len(expected)) / 4000
    likely = expected.topk(5).indices
    assert (counts[likely] - expected[likely]).abs().max() < 4 * (0.25 / 4000) ** 0.5
    assert (counts > 0).sum() > 60  # no cut to the most likely few
    assert generate(lm, tokenizer, [prompt], 6, temperature=1e-4, seed=1) == generate(lm, tokenizer, [prompt], 6)
