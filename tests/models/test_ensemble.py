from __future__ import annotations

import copy

import pytest
import torch

from tests.tiny import BOS, tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama, tiny_tokenizer
from unlearn.errors import ModelError
from unlearn.models.capture import capture
from unlearn.models.decoder import head, output_head
from unlearn.models.ensemble import Small, ensemble_of, first_blocks, join, small_of
from unlearn.models.forward import forward, generate
from unlearn.models.reference import ReferenceStore

FAMILIES = {"llama": tiny_llama, "gemma2": tiny_gemma2, "gpt2": tiny_gpt2}
family = pytest.mark.parametrize("family", list(FAMILIES))
CAP = 3.0
"""Soft cap of the tiny Gemma's logits."""


def two_small(family: str) -> tuple:
    """Small models of another width and seed than the large one."""
    return tuple(FAMILIES[family](d_model=16, layers=2, seed=seed, **({"heads": 2} if family == "llama" else {})) for seed in (5, 6))


def joined(family: str, alpha: float = 0.7):  # noqa: ANN201
    lm, (frozen, tuned) = FAMILIES[family](), two_small(family)
    plain = copy.deepcopy(lm)
    join(lm, small_of(frozen), small_of(tuned), alpha)
    return lm, plain, frozen, tuned


def bare(lm):  # noqa: ANN001, ANN201
    """``lm`` without a cap."""
    lm = copy.deepcopy(lm)
    lm.config.final_logit_softcapping = None
    return lm


@family
@torch.no_grad()
def test_logits_are_the_weighted_sum(family):
    lm, plain, frozen, tuned = joined(family)
    batch = tiny_batch(rows=4, length=14, shortest=9)
    parts = [bare(m)(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits for m in (plain, tuned, frozen)]
    expected = parts[0] + 0.7 * (parts[1] - parts[2])
    if family == "gemma2":
        expected = CAP * torch.tanh(expected / CAP)
    real = batch.attention_mask_BT.bool()
    found = lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[real], plain(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[real], atol=0.1)


@family
@torch.no_grad()
def test_the_pass_at_answer_positions_agrees_with_the_whole_one(family):
    lm, *_ = joined(family)
    batch = tiny_batch(rows=4, length=14, shortest=9)
    whole = lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1][batch.labels_BT[:, 1:] != -100]
    torch.testing.assert_close(forward(lm, batch).logits_AV, whole, atol=1e-5, rtol=1e-5)
    kept = lm(batch.input_ids_BT[:1], logits_to_keep=1).logits
    assert kept.shape == (1, 1, 512)
    torch.testing.assert_close(kept[0, 0], lm(batch.input_ids_BT[:1]).logits[0, -1], atol=1e-5, rtol=1e-5)


PROMPTS = [[BOS, 17, 45, 200, 31, 9, 77], [BOS, 5], [BOS, 300, 12, 12], [BOS, 99, 98, 97, 96, 95, 94, 93, 92, 91]]


@family
def test_cached_generation_with_left_padding_equals_naive_decoding(family):
    lm, plain, *_ = joined(family, alpha=2.0)
    tokenizer = tiny_tokenizer()
    expected = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(lm(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    for batch_size in (64, 1):
        made = generate(lm, tokenizer, PROMPTS, 6, batch_size=batch_size)
        assert [e[: len(m)] for e, m in zip(expected, made, strict=True)] == made
        assert max(map(len, made)) == 6
    assert made != generate(plain, tokenizer, PROMPTS, 6)


def test_beam_search_reorders_the_small_models_caches():
    lm, *_ = joined("llama", alpha=2.0)
    ids = torch.tensor([PROMPTS[0]])
    options = {"num_beams": 4, "max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    assert torch.equal(lm.generate(ids, use_cache=True, **options), lm.generate(ids, use_cache=False, **options))


@family
@torch.no_grad()
def test_copies_have_small_models_of_their_own(family):
    lm, plain, frozen, tuned = joined(family)
    batch = tiny_batch()
    before = forward(lm, batch).logits_AV
    twin = copy.deepcopy(lm)
    own = ensemble_of(twin)
    assert own is not None
    assert own is not ensemble_of(lm)
    torch.testing.assert_close(forward(twin, batch).logits_AV, before)
    for parameter in tuned.parameters():
        parameter.add_(0.1)
    torch.testing.assert_close(forward(twin, batch).logits_AV, before)
    assert not torch.allclose(forward(lm, batch).logits_AV, before)


@family
@torch.no_grad()
def test_nothing_of_the_large_model_changes(family):
    lm, plain, *_ = joined(family)
    batch = tiny_batch()
    assert lm.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, _ in lm.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(lm.parameters(), plain.parameters(), strict=True))
    for layer in (-1, 1, 3):
        torch.testing.assert_close(capture(lm, batch, layer), capture(plain, batch, layer))
    states = torch.randn(3, 32)
    torch.testing.assert_close(head(lm, states), head(plain, states))


def test_a_pass_that_stops_early_leaves_the_small_models_alone():
    lm, _, frozen, _ = joined("llama")
    runs = []
    frozen.model.register_forward_hook(lambda *_: runs.append(1))
    capture(lm, tiny_batch(), 2)
    assert runs == []
    forward(lm, tiny_batch())
    assert runs == [1]


def test_the_reference_still_gives_the_original_logits(tmp_path):
    lm = tiny_llama().requires_grad_(False)
    batch = tiny_batch()
    with torch.no_grad():
        expected = forward(lm, batch).logits_AV
    store = ReferenceStore.build(lm, [batch], layers=(1,), path=tmp_path / "s")
    frozen, tuned = two_small("llama")
    join(lm, small_of(frozen), small_of(tuned), 1.0)
    torch.testing.assert_close(store.logits(batch), expected)
    with torch.no_grad():
        forward(lm, batch)
        torch.testing.assert_close(store.logits(batch), expected)
        assert not torch.allclose(forward(lm, batch).logits_AV, expected, atol=0.1)


def test_gradients_reach_the_tuned_model_only():
    lm, _, frozen, tuned = joined("llama")
    lm.requires_grad_(False)
    forward(lm, tiny_batch()).logits_AV.float().logsumexp(-1).mean().backward()
    assert all(p.grad is None for p in (*lm.parameters(), *frozen.parameters()))
    assert all(p.grad is not None for p in tuned.parameters())


@family
@torch.no_grad()
def test_first_blocks_are_a_logit_lens_and_share_the_embeddings_only(family):
    lm = FAMILIES[family]()
    batch = tiny_batch(rows=3)
    small = first_blocks(lm, 2)
    states = small.decoder(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)[0]
    block = capture(lm, batch, 1)
    norm = lm.transformer.ln_f if family == "gpt2" else lm.model.norm
    real = batch.attention_mask_BT.bool()
    torch.testing.assert_close(states[real], norm(block)[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.head(states), output_head(lm)(states))
    theirs = {id(p) for p in lm.parameters()}
    shared = [n for n, p in small.named_parameters() if id(p) in theirs]
    assert shared == (["decoder.wte.weight", "decoder.wpe.weight"] if family == "gpt2" else ["decoder.embed_tokens.weight"])


@family
@torch.no_grad()
def test_two_cuts_of_the_same_model_cancel(family):
    lm = FAMILIES[family]()
    batch = tiny_batch()
    before = forward(lm, batch).logits_AV
    join(lm, first_blocks(lm, 2), first_blocks(lm, 2), 1.0)
    torch.testing.assert_close(forward(lm, batch).logits_AV, before)


@torch.no_grad()
def test_a_smaller_vocabulary_leaves_the_other_columns_alone():
    lm, batch = tiny_llama(), tiny_batch(vocab_size=400)
    before = forward(lm, batch).logits_AV
    frozen, tuned = (small_of(tiny_llama(vocab_size=500, d_model=16, layers=1, heads=2, seed=s)) for s in (5, 6))
    join(lm, frozen, tuned, 1.0)
    after = forward(lm, batch).logits_AV
    torch.testing.assert_close(after[:, 500:], before[:, 500:])
    assert not torch.allclose(after[:, :500], before[:, :500], atol=0.1)


def test_what_cannot_be_done_is_said():
    lm, *_ = joined("llama")
    with pytest.raises(ModelError, match="must stand alone"):
        join(lm, *map(small_of, two_small("llama")), 1.0)
    with pytest.raises(ModelError, match="must be run on input_ids; found embeddings only"):
        lm(inputs_embeds=torch.zeros(1, 3, 32))
    for blocks in (0, 4):
        with pytest.raises(ModelError, match=rf"in \[1, 3\]; found {blocks}"):
            first_blocks(tiny_llama(), blocks)
    assert isinstance(small_of(tiny_llama()), Small)
