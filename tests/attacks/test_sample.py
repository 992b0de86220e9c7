"""Leak@k: the estimator against enumeration, and drawn answers against a model whose probabilities are set by hand."""

import itertools
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch

from unlearn.attack import weights_hash
from unlearn.attacks.base import AttackContext
from unlearn.attacks.facts import Facts
from unlearn.attacks.sample import Sample, SampleConfig, leak_at
from unlearn.errors import ConfigError
from unlearn.models.decoder import output_head


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_the_estimator_is_the_share_of_subsets_with_a_right_draw(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = [i < c for i in range(n)]
        subsets = [any(chosen) for chosen in itertools.combinations(draws, k)]
        assert leak_at(np.array([c]), n, k)[0] == pytest.approx(np.mean(subsets))
        assert leak_at(np.array([c]), n, k)[0] == pytest.approx(1 - comb(n - c, k) / comb(n, k))


def test_the_estimator_is_unbiased():
    """Over all outcomes of 6 draws, each right with chance 0.3, its mean is the chance of a right one in k."""
    p, n = 0.3, 6
    for k in (1, 2, 4, 6):
        mean = sum(comb(n, c) * p**c * (1 - p) ** (n - c) * leak_at(np.array([c]), n, k)[0] for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k)


def test_the_ks_are_powers_of_two_up_to_the_draws():
    assert SampleConfig().ks == (1, 2, 4, 8, 16, 32, 64)
    assert SampleConfig(draws=5).ks == (1, 2, 4)


def loaded_coin(context: AttackContext, chance: float) -> tuple[AttackContext, str]:
    """A model that says one token with ``chance`` and ends its answer otherwise, whatever it is asked; and that token's text."""
    lm = context.copy()
    tokenizer = context.reader.tokenizer
    token = tokenizer("painter", add_special_tokens=False)["input_ids"][0]
    logits_V = torch.full((output_head(lm).weight.shape[0],), -1e4)
    logits_V[token], logits_V[tokenizer.eos_token_id] = np.log(chance), np.log(1 - chance)
    output_head(lm).register_forward_hook(lambda module, args, output: logits_V.expand_as(output))
    return replace(context, lm=lm), tokenizer.decode([token])


def test_drawn_answers_have_the_model_s_probabilities(taught):
    """One token right with chance 0.2, asked for by every row: leak@k is 1 - 0.8**k."""
    context, word = loaded_coin(taught, 0.2)
    rows = tuple(replace(row, answer=word, accepted_answers=(word * 2, word * 3, word * 4)) for row in taught.target.test * 3)
    wrong = tuple(replace(row, answer="Paris", accepted_answers=()) for row in taught.control.test)
    context = replace(context, target=Facts(rows, rows), control=Facts(wrong, wrong))
    outcome = Sample(SampleConfig(draws=16)).run(context)
    assert outcome.cells == ("k1", "k2", "k4", "k8", "k16")
    for values, k in zip(outcome.target, SampleConfig(draws=16).ks, strict=True):
        assert values.mean() == pytest.approx(1 - 0.8**k, abs=0.08), k
    assert (outcome.control == 0).all()
    assert outcome.extra["attack/leak_at_4"] == pytest.approx(outcome.target[2].mean())
    assert outcome.extra["attack/leak_at_16_control"] == 0


def test_a_cold_draw_is_the_greedy_answer(taught):
    outcome = Sample(SampleConfig(draws=3, temperature=1e-3)).run(taught)
    assert (outcome.target == 1).all()
    assert outcome.results("attack/sample", "leak", 50, 0)["attack/sample_excess"] > 0


def test_draws_follow_from_the_seed_and_leave_everything_alone(taught):
    before, state = weights_hash(taught.lm), torch.get_rng_state()
    shares = []
    found = [Sample(SampleConfig(draws=9)).run(replace(taught, seed=seed, tick=shares.append)).record() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert weights_hash(taught.lm) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("field", "value"),
    [("draws", 0), ("temperature", 0.0), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", -1.0)],
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^attack.sample.{field} must be"):
        SampleConfig(**{field: value})
