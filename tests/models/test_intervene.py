from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
from torch import Tensor

import unlearn.models.intervene as module
from tests.tiny import BOS, PAD, tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama, tiny_tokenizer
from unlearn.errors import ModelError
from unlearn.models.capture import capture
from unlearn.models.forward import forward, generate
from unlearn.models.intervene import Edit, Seen, content_tokens, intervene

FAMILIES = {"llama": tiny_llama, "gemma2": tiny_gemma2, "gpt2": tiny_gpt2}
family = pytest.mark.parametrize("family", list(FAMILIES))
PROMPTS = [[BOS, 17, 40, 99, 23], [BOS, 8, 301], [BOS, 44, 45, 46, 47, 48, 49, 12]]


def counting(size: float = 1.0) -> Edit:
    """Adds a number that grows with the content tokens read so far: wrong as soon as the text's past is lost."""

    def edit(hidden_BTD: Tensor, seen: Seen) -> Tensor:
        before_B = seen.memory.get("count", 0)
        count_BT = seen.content_BT.cumsum(1)
        if isinstance(before_B, Tensor):
            count_BT = count_BT + before_B[:, None]
        seen.memory["count"] = count_BT[:, -1]
        push_D = torch.linspace(-size, size, hidden_BTD.shape[-1])
        return hidden_BTD + (count_BT * seen.content_BT)[..., None] * push_D

    return edit


@torch.no_grad()
def slow(lm: Any, prompt: list[int], n: int) -> list[int]:
    """Greedy continuation without a cache, one text at a time."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@family
def test_cached_generation_in_a_left_padded_batch_equals_uncached_alone(family: str) -> None:
    lm = FAMILIES[family]()
    plain = [slow(lm, prompt, 6) for prompt in PROMPTS]
    intervene(lm, {1: counting()}, BOS)
    wanted = [slow(lm, prompt, 6) for prompt in PROMPTS]
    assert wanted != plain
    fast = generate(lm, tiny_tokenizer(), PROMPTS, 6)
    assert all(f == w[: len(f)] for f, w in zip(fast, wanted, strict=True))
    assert any(len(f) >= 4 for f in fast)


@family
def test_logits_with_a_cache_equal_those_without(family: str) -> None:
    lm = FAMILIES[family]()
    intervene(lm, {0: counting(), 2: counting(0.3)}, BOS)
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        whole = lm(input_ids=ids, use_cache=False).logits[0]
        first = lm(input_ids=ids[:, :5], use_cache=True)  # the model makes the cache
        parts, cache = [first.logits[0]], first.past_key_values
        for t in range(5, ids.shape[1]):
            step = lm(input_ids=ids[:, t : t + 1], attention_mask=torch.ones(1, t + 1), past_key_values=cache, use_cache=True)
            parts.append(step.logits[0])
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)


@family
def test_padding_on_either_side_changes_nothing(family: str) -> None:
    lm = FAMILIES[family]()
    intervene(lm, {1: counting()}, BOS)
    ids = PROMPTS[0]
    n, width = len(ids), 9
    with torch.no_grad():
        alone = lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        for shift in (0, width - n):
            padded, mask = torch.full((1, width), PAD), torch.zeros(1, width, dtype=torch.long)
            padded[0, shift : shift + n], mask[0, shift : shift + n] = torch.tensor(ids), 1
            places = (mask.cumsum(1) - 1).clamp(min=0)
            out = lm(input_ids=padded, attention_mask=mask, position_ids=places, use_cache=False).logits[0, shift : shift + n]
            torch.testing.assert_close(out, alone, atol=1e-4, rtol=1e-4)


@family
def test_early_exit_and_embedding_layer_meet_the_edit(family: str) -> None:
    lm, batch = FAMILIES[family](), tiny_batch(rows=2)
    with torch.no_grad():
        before = {layer: capture(lm, batch, layer) for layer in (-1, 1)}
        intervene(lm, {-1: lambda h, seen: h + 0.5, 1: lambda h, seen: h * 0 + 7.0}, BOS)
        torch.testing.assert_close(capture(lm, batch, -1), before[-1] + 0.5)
        assert torch.equal(capture(lm, batch, 1), torch.full_like(before[1], 7.0))
        assert torch.equal(forward(lm, batch, layers=(1,)).hidden[1], torch.full_like(before[1], 7.0))


@family
def test_a_copy_keeps_the_edit_and_removal_leaves_the_weights_alone(family: str) -> None:
    lm, batch = FAMILIES[family](), tiny_batch(rows=2)
    with torch.no_grad():
        plain, state = forward(lm, batch).logits_AV, copy.deepcopy(lm.state_dict())
        handle = intervene(lm, {1: counting()}, BOS)
        changed = forward(lm, batch).logits_AV
        assert not torch.allclose(changed, plain)
        twin = copy.deepcopy(lm)
        handle.remove()
        assert torch.equal(forward(lm, batch).logits_AV, plain)
        torch.testing.assert_close(forward(twin, batch).logits_AV, changed)
    assert all(torch.equal(value, state[key]) for key, value in lm.state_dict().items())


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_under_peft(wrapped_first: bool) -> None:
    from peft import LoraConfig, get_peft_model

    def wrap(model: Any) -> Any:
        return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()

    lm, batch = tiny_llama(), tiny_batch(rows=2)
    bare = copy.deepcopy(lm)
    intervene(bare, {1: counting()}, BOS)
    if wrapped_first:
        lm = wrap(lm)
        intervene(lm, {1: counting()}, BOS)
    else:
        intervene(lm, {1: counting()}, BOS)
        lm = wrap(lm)
    with torch.no_grad():
        torch.testing.assert_close(forward(lm, batch).logits_AV, forward(bare, batch).logits_AV)
        torch.testing.assert_close(forward(copy.deepcopy(lm), batch).logits_AV, forward(bare, batch).logits_AV)


def test_the_output_keeps_the_models_precision() -> None:
    lm, batch = tiny_llama().bfloat16(), tiny_batch(rows=2)
    intervene(lm, {1: lambda h, seen: h.float() * 2}, BOS)
    with torch.no_grad():
        assert forward(lm, batch).logits_AV.dtype == torch.bfloat16


def test_gradients_flow_through() -> None:
    lm, batch = tiny_llama(), tiny_batch(rows=2)
    intervene(lm, {1: counting()}, BOS)
    forward(lm, batch).logits_AV.sum().backward()
    assert next(lm.parameters()).grad.abs().sum() > 0


def test_content() -> None:
    ids = torch.tensor([[PAD, BOS, 5, 6], [BOS, 7, 8, PAD]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    assert content_tokens(ids, mask, BOS).tolist() == [[False, False, True, True], [False, True, True, False]]
    assert content_tokens(ids, mask, None).tolist() == mask.bool().tolist()
    assert content_tokens(ids[:, 2:], mask, BOS).tolist() == [[True, True], [True, False]]  # the mask covers the past too


def test_embeddings_in_the_place_of_ids() -> None:
    lm = tiny_llama()
    seen: list[Tensor] = []
    intervene(lm, {1: lambda h, s: seen.append(s.content_BT) or h}, BOS)
    embeds = lm.get_input_embeddings()(torch.tensor([[BOS, 5, PAD]]))
    with torch.no_grad():
        lm(inputs_embeds=embeds, attention_mask=torch.tensor([[1, 1, 0]]), use_cache=False)
    assert seen[0].tolist() == [[True, True, False]]


def test_a_layer_out_of_range_is_refused() -> None:
    with pytest.raises(ModelError, match="found 4"):
        intervene(tiny_llama(layers=4), {4: lambda h, seen: h})


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
