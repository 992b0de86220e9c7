from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.errors import ConfigError, DataError
from unlearn.functional.erasure import negative_entropy
from unlearn.methods import tar
from unlearn.methods.relearning import Relearner, add_gradients
from unlearn.methods.tar import TARConfig, measured_after
from unlearn.methods.undo import trained_weights
from unlearn.models.forward import forward
from unlearn.types import Row


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), taught=True)


def test_doctests() -> None:
    assert doctest.testmod(tar).failed == 0


def test_the_gradient_is_the_mean_over_the_adversary_s_way(made: Toy) -> None:
    """By hand: adversaries of the same draws, and autograd at their weights."""
    lm, method = made.ready("tar", adversary_steps=2, points=1, resistance_weight=3.0, retain_weight=0.0)
    method.before_step(lm, 5, 10)
    method.loss(lm, made.batch()).total.backward()
    method.adjust_gradients(lm)
    relearner = Relearner(lm, method.config, made.data.streams["forget"], made.reader(), 0)
    relearner.begin(lm, 5)
    weights, sums = list(trained_weights(lm).values()), {}
    for part in range(3):
        with relearner.adversary.shifted(lm):
            if part != 1:  # before the first step, and after the last
                entropy = negative_entropy(forward(lm, relearner.batch(relearner.questions(5), torch.device("cpu"))).logits_AV).mean()
                for i, g in enumerate(torch.autograd.grad(entropy, weights, allow_unused=True)):
                    sums[i] = sums.get(i, 0) + (g if g is not None else 0)
        if part < 2:
            relearner.attack(lm, 5, part)
    for i, weight in enumerate(weights):
        if isinstance(sums[i], torch.Tensor):
            torch.testing.assert_close(weight.grad, 1.5 * sums[i], atol=1e-6, rtol=1e-4)


def test_what_is_asked_was_not_taught(made: Toy) -> None:
    lm, method = made.ready("tar")
    relearner = method.relearner
    taught_sets = set()
    for step in range(6):
        relearner.begin(lm, step)
        taught, asked = set(relearner.taught), set(relearner.asked())
        taught_sets.add(frozenset(taught))
        assert taught
        assert asked
        assert not taught & asked
        rows = relearner.rows
        assert not {(rows[i].entity, rows[i].answer) for i in taught} & {(rows[i].entity, rows[i].answer) for i in asked}
    assert len(taught_sets) > 1


def test_entropy_rises_and_stays_up_under_an_adversary_while_retain_answers_stay(made: Toy) -> None:
    def entropy(lm: Any) -> float:
        with torch.no_grad():
            return -negative_entropy(forward(lm, made.batch(6)["forget"]).logits_AV).mean().item()

    def retained(lm: Any) -> float:
        with torch.no_grad():
            out = forward(lm, made.batch(8)["retain"])
            return (out.logits_AV.argmax(-1) == out.targets_A).float().mean().item()

    lm, _ = made.trained("tar", steps=25, lr=2e-3, adversary_steps=4, points=2)
    assert entropy(lm) > entropy(made.lm) + 1
    assert retained(lm) > 0.8
    plain = Relearner(lm, TARConfig(name="tar"), made.data.streams["forget"], made.reader(), 3)
    found = {}
    for name, model in (("original", made.ready("tar")[0]), ("tar", lm)):
        plain.begin(model, 0)
        for part in range(4):
            plain.attack(model, 0, part)
        with plain.adversary.shifted(model):
            found[name] = entropy(model)
    assert found["tar"] > found["original"] + 0.5


def test_points_beyond_the_steps_count_once() -> None:
    assert measured_after(3, 99) == {1, 2, 3}
    assert max(measured_after(64, 4)) == 64


def test_gradients_are_added_to_trained_weights_only(made: Toy) -> None:
    lm, _ = made.ready("tar")
    weights = trained_weights(lm)
    name = next(iter(weights))
    frozen = next(n for n, p in lm.named_parameters() if not p.requires_grad)
    weights[name].grad = torch.ones_like(weights[name])
    add_gradients(lm, {name: torch.full_like(weights[name], 2.0), frozen: torch.ones(())}, 0.5)
    assert (weights[name].grad == 2).all()
    assert lm.get_parameter(frozen).grad is None


def test_facts_that_cannot_be_split_are_an_error(made: Toy) -> None:
    lm, method = made.ready("tar")
    rows = [Row(row_id=0, entity="Ann Lee", prompt="Where was Ann Lee born?", answer="Paris", mentions=("Ann Lee",))]
    with pytest.raises(DataError, match="two facts or more"):
        Relearner(lm, method.config, rows, made.reader(), 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adversary", "half"),
        ("adversary_blocks", "1-"),
        ("adversary_lrs", []),
        ("adversary_steps", 0),
        ("taught_share", 1.0),
        ("points", 0),
        ("resistance_weight", float("inf")),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{key} must be"):
        TARConfig(name="tar", **{key: value})
