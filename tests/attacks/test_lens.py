"""Lenses against transformers' own hidden states, and against scikit-learn's ridge regression."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from tests.tiny import BOS, tiny_gemma2, tiny_gpt2, tiny_llama
from unlearn.attack import weights_hash
from unlearn.attacks.facts import options_of
from unlearn.attacks.lens import Lens, LensConfig, best_first, first_tokens
from unlearn.errors import ConfigError
from unlearn.models.decoder import final_norm

EVERYTHING = 10**6


def states(lm, ids):
    """Outputs of all blocks before the final norm, [L, T, D]; what transformers returns last is after it."""
    last = []
    handle = final_norm(lm).register_forward_pre_hook(lambda module, args: last.append(args[0][0]))
    hidden = lm(torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    return torch.stack([*(h[0] for h in hidden[1:-1]), last[0]]).detach().numpy()


def logits(lm, hidden):
    out = lm.get_output_embeddings()(final_norm(lm)(torch.tensor(hidden, dtype=torch.float32)))
    cap = getattr(lm.config, "final_logit_softcapping", None)
    return (out if cap is None else cap * torch.tanh(out / cap)).detach()


def tokens_of(context, row):
    """First tokens of the values that a row's answer competes with, by tokenising whole texts."""
    tokenizer = context.reader.tokenizer
    prompt = f"Question: {row.prompt}\nAnswer: "
    skip = len(tokenizer(prompt.rstrip()).input_ids)
    return [tokenizer(prompt + value).input_ids[skip] for value in options_of(row, {})]


def test_first_tokens_of_the_competing_values(taught):
    rows = taught.target.test
    assert first_tokens(rows, taught.reader, {}) == [tokens_of(taught, row) for row in rows]


def test_a_hit_is_the_best_of_its_competitors_and_equal_ones_share():
    found = torch.tensor([5.0, 1.0, 3.0, 3.0])
    assert best_first(found, [2, 1]) == 1
    assert best_first(found, [1, 2]) == 0
    assert best_first(found, [2, 3, 1]) == 0.5
    assert best_first(found, [2, 2, 2, 1]) == pytest.approx(1 / 3)
    assert np.isnan(best_first(found, [2]))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_the_logit_lens_reads_every_block(taught, make):
    lm = make(seed=1)
    context = replace(taught, lm=lm)
    found = Lens(LensConfig(tuned=False)).run(context)
    assert found.cells == tuple(f"logit@layer{layer}" for layer in range(4))
    for n, row in enumerate(context.target.test):
        token = context.reader.tokens([row])[0]
        hidden = states(lm, token.ids)[:, token.answer_start - 1]
        expected = [best_first(logits(lm, h), tokens_of(context, row)) for h in hidden]
        assert found.target[:, n].tolist() == pytest.approx(expected)
        full = lm(torch.tensor([token.ids])).logits[0, token.answer_start - 1]
        assert found.target[3, n] == pytest.approx(best_first(full, tokens_of(context, row)))


def test_the_tuned_lens_is_a_regression_on_texts_and_other_rows(taught):
    config = LensConfig(tokens=EVERYTHING, penalty=0.03)
    found = Lens(config).run(taught)
    assert found.cells[4:] == tuple(f"tuned@layer{layer}" for layer in range(3))
    lm, reader = taught.lm, taught.reader
    parts = []
    for row in taught.data.streams["retain"]:
        token = reader.tokens([row])[0]
        parts.append(states(lm, token.ids)[:, token.answer_start - 1 : -1])
    for text in taught.data.generic:
        ids = reader.tokenizer(text).input_ids
        assert ids[0] == BOS
        parts.append(states(lm, ids)[:, 1:-1])
    seen = np.concatenate(parts, axis=1).astype(float)
    for layer in range(3):
        x, y = seen[layer], seen[3] - seen[layer]
        ridge = Ridge(alpha=0.03 * ((x - x.mean(0)) ** 2).sum() / x.shape[1]).fit(x, y)
        for n, row in enumerate(taught.target.test):
            token = reader.tokens([row])[0]
            h = states(lm, token.ids)[layer, token.answer_start - 1]
            expected = best_first(logits(lm, h + ridge.predict(h[None].astype(float))[0]), tokens_of(taught, row))
            assert found.target[4 + layer, n] == pytest.approx(expected)


def test_it_finds_what_the_model_knows_and_not_what_is_made_up(taught):
    results = Lens(LensConfig()).run(taught).results("attack/lens", "accuracy", 0, 0)
    assert results["attack/lens_accuracy@logit@layer3"] == 1
    assert results["attack/lens_excess"] > 0.2


def test_model_and_random_state_stay_and_it_repeats(taught):
    before, state = weights_hash(taught.lm), torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in taught.lm.modules()]
    attack = Lens(LensConfig(tokens=60))
    assert attack.missing(taught) is None
    assert attack.run(taught).record() == attack.run(taught).record()
    assert weights_hash(taught.lm) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(module._forward_hooks) for module in taught.lm.modules()] == hooks


def test_answers_without_competitors_are_missing(taught):
    bare = replace(taught.target, test=tuple(replace(row, perturbed_answers=()) for row in taught.target.test))
    assert "compete" in Lens(LensConfig()).missing(replace(taught, target=bare))
    data = replace(taught.data, generic=(), streams={**taught.data.streams, "retain": ()})
    assert Lens(LensConfig()).missing(replace(taught, data=data)) == "generic texts or retain rows"
    assert Lens(LensConfig(tuned=False)).missing(replace(taught, data=data)) is None


@pytest.mark.parametrize(("key", "value"), [("tokens", 0), ("tokens", float("nan")), ("penalty", 0.0), ("penalty", float("nan"))])
def test_bad_settings_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"^attack\.lens\.{key} must be"):
        LensConfig(**{key: value})
