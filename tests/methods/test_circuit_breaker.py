from __future__ import annotations

import copy

import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError
from unlearn.methods.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    default_layers,
    distance_loss,
    orthogonality_loss,
    rerouting_loss,
)
from unlearn.methods.rmu import token_mask
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def changed(made: Toy):  # noqa: ANN201
    lm = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(lm)[0].parameters()).add_(0.2)
    return lm


def test_rerouting_by_hand_and_in_its_limits() -> None:
    h = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert rerouting_loss(h, 7 * h).item() == pytest.approx(1.0)
    assert rerouting_loss(h, -h).item() == 0.0
    assert rerouting_loss(h, torch.tensor([[1.0, 0.0], [0.0, 5.0]])).item() == pytest.approx((0.6 + 0.0) / 2)


def test_distance_is_not_squared_and_harmless_at_zero() -> None:
    h = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    loss = distance_loss(h, torch.zeros(2, 2))
    loss.backward()
    assert loss.item() == pytest.approx(2.5)
    torch.testing.assert_close(h.grad, torch.tensor([[0.3, 0.4], [0.0, 0.0]]))


def test_orthogonality_by_pairs() -> None:
    hidden = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    means = [h[m].mean(0) for h, m in zip(hidden, mask, strict=True)]
    pairs = [torch.cosine_similarity(a, b, dim=0).relu() for i, a in enumerate(means) for j, b in enumerate(means) if i != j]
    assert orthogonality_loss(hidden, mask).item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert orthogonality_loss(hidden[:1], mask[:1]).item() == 0.0


@pytest.mark.parametrize(("step", "forget", "retain"), [(0, 10.0, 0.0), (5, 7.5, 2.5), (10, 5.0, 5.0)])
def test_schedule_is_the_papers(made: Toy, step: int, forget: float, retain: float) -> None:
    method, lm, batch = made.method("circuit_breaker"), changed(made), made.batch()
    method.before_step(lm, step, 10)
    out = method.loss(lm, batch)
    assert out.total.item() == pytest.approx((forget * out.terms["forget"] + retain * out.terms["retain"]).item(), rel=1e-5)


def test_the_ports_schedule_fits_the_same_numbers(made: Toy) -> None:
    method = made.method("circuit_breaker", forget_weight=23.0, forget_decay=0.25, retain_weight=2.0, orthogonality=10.0)
    method.before_step(made.lm, 4, 10)
    out = method.loss(changed(made), made.batch())
    expected = 23 * (1 - 0.25 * 0.4) * out.terms["forget"] + 2 * 0.4 * out.terms["retain"] + 10 * 0.4 * out.terms["orthogonality"]
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("tokens", ["all", "answers"])
def test_terms_by_hand(made: Toy, tokens: str) -> None:
    method, lm, batch = made.method("circuit_breaker", layers=[0, 3], nudge=0.0, tokens=tokens), changed(made), made.batch()
    terms = method.loss(lm, batch).terms
    cosines, distances = [], []
    for layer in (0, 3):
        mask, kept = token_mask(batch["forget"], tokens), token_mask(batch["retain"], "all")
        new, old = (capture(m, batch["forget"], layer)[mask] for m in (lm, made.lm))
        cosines.append(torch.nn.functional.cosine_similarity(new, old).relu().mean())
        distances.append((capture(lm, batch["retain"], layer)[kept] - capture(made.lm, batch["retain"], layer)[kept]).norm(dim=1).mean())
    assert terms["forget"].item() == pytest.approx(torch.stack(cosines).mean().item(), rel=1e-4)
    assert terms["retain"].item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-4)


def test_without_the_nudge_the_start_has_no_gradient_and_with_it_a_small_turn(made: Toy) -> None:
    batch = made.batch()

    def slope(nudge: float) -> tuple[float, float]:
        lm, method = made.ready("circuit_breaker", nudge=nudge)
        term = method.loss(lm, batch).terms["forget"]
        term.backward()
        return term.item(), max(p.grad.abs().max().item() for p in lm.parameters() if p.grad is not None)

    flat, flat_slope = slope(0.0)
    turned, turned_slope = slope(0.01)
    assert flat == pytest.approx(1.0, abs=1e-6)
    assert turned == pytest.approx(1 / (1 + 0.01**2) ** 0.5, abs=2e-5)
    assert turned_slope > 1e3 * flat_slope


def test_training_turns_the_target_away_and_the_retain_weight_holds_the_rest(made: Toy) -> None:
    def trained(**config: float) -> tuple[float, float]:
        lm, method = made.trained("circuit_breaker", steps=20, lr=5e-3, **config)
        terms = method.loss(lm, made.batch()).terms
        return terms["forget"].item(), terms["retain"].item()

    free, held = trained(retain_weight=0.0), trained(retain_weight=20.0)
    assert free[0] < 0.5
    assert held[1] < free[1]


def test_layers_are_the_papers_depths_unless_given(made: Toy) -> None:
    assert [default_layers(n) for n in (32, 12, 2)] == [(9, 19), (3, 7), (0, 1)]
    default, given = CircuitBreakerConfig(name="circuit_breaker"), CircuitBreakerConfig(name="circuit_breaker", layers=[3, 0])
    assert CircuitBreaker.reference_layers(default, LAYER, 32) == (9, 19)
    assert CircuitBreaker.reference_layers(given, LAYER, 4) == (3, 0)
    assert made.method("circuit_breaker", layers=[3, 0]).deepest_layer() == 3
    with pytest.raises(ConfigError, match=r"method.layers must be a block of the model, 0 to 3; found 4"):
        made.method("circuit_breaker", layers=[4])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", [-1]),
        ("layers", [1, 1]),
        ("forget_weight", -1.0),
        ("forget_decay", 1.5),
        ("retain_weight", float("nan")),
        ("orthogonality", -1.0),
        ("tokens", "some"),
        ("nudge", 1.0),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        CircuitBreakerConfig(name="circuit_breaker", **{key: value})
