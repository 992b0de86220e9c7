from __future__ import annotations

import doctest
import math
from dataclasses import replace

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.tokens import answer_logits
from unlearn.methods import flat
from unlearn.methods.flat import DIVERGENCES, FLAT, FLATConfig, flat_loss
from unlearn.types import TokenBatch

P_N = torch.tensor([0.1, 0.6], dtype=torch.float64)
Q_B = torch.tensor([0.9, 0.2, 0.4], dtype=torch.float64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(flat)
    assert result.attempted >= 1
    assert result.failed == 0


BY_HAND = {
    "tv": (lambda p: math.tanh(p) / 2, lambda q: math.tanh(q) / 2),
    "kl": (lambda p: p, lambda q: math.exp(q - 1)),
    "pearson": (lambda p: p, lambda q: q * q / 4 + q),
    "js": (lambda p: math.log(2 / (1 + math.exp(-p))), lambda q: -math.log(2 - 2 / (1 + math.exp(-q)))),
}


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_by_hand(name: str) -> None:
    reward, penalty = BY_HAND[name]
    expected = -sum(map(reward, P_N.tolist())) / 2 + sum(map(penalty, Q_B.tolist())) / 3
    assert flat_loss(P_N, Q_B, name).item() == pytest.approx(expected, rel=1e-12)


GENERATORS = {
    "tv": (lambda v: torch.tanh(v) / 2, lambda u: (u - 1).abs() / 2),
    "kl": (lambda v: v, lambda u: u * u.log()),
    "pearson": (lambda v: v, lambda u: (u - 1).square()),
    "js": (lambda v: math.log(2) - torch.nn.functional.softplus(-v), lambda u: u * u.log() - (1 + u) * ((1 + u) / 2).log()),
}


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_the_penalty_is_the_conjugate_of_the_generator(name: str) -> None:
    """``f*(t) = sup_u (u t - f(u))``, searched on a grid, at t = g(P)."""
    g, f = GENERATORS[name]
    u = torch.logspace(-6, 3, 400_001, dtype=torch.float64)
    for q in (0.05, 0.5, 1.0):
        t = g(torch.tensor(q, dtype=torch.float64))
        conjugate = (u * t - f(u)).max().item()
        assert DIVERGENCES[name].penalty(torch.tensor(q, dtype=torch.float64)).item() == pytest.approx(conjugate, abs=1e-5)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_falls_with_the_template_and_rises_with_the_forget_answer(name: str) -> None:
    p, q = P_N.clone().requires_grad_(), Q_B.clone().requires_grad_()
    flat_loss(p, q, name).backward()
    assert p.grad is not None
    assert q.grad is not None
    assert (p.grad < 0).all()
    assert (q.grad > 0).all()


def probability(lm, batch: TokenBatch) -> torch.Tensor:  # noqa: ANN001
    with torch.no_grad():
        logits = lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
    logits_AV, targets_A, row_A = answer_logits(logits, batch.labels_BT)
    p_A = logits_AV.softmax(-1)[torch.arange(len(targets_A)), targets_A]
    return torch.stack([p_A[row_A == row].mean() for row in range(len(batch.labels_BT))])


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_the_loss_is_the_formula_on_the_stock_model(made: Toy, name: str) -> None:
    _, method = made.ready("flat", divergence=name)
    batch = made.batch()["forget"]
    (template,) = made.reader().batches([replace(row, answer="unknown") for row in made.data.streams["forget"][:4]])
    expected = flat_loss(probability(made.lm, template), probability(made.lm, batch), name)
    out = method.loss(made.lm, {"forget": batch})
    assert out.total.item() == pytest.approx(expected.item(), abs=1e-5)
    assert set(out.terms) == {"forget"}


def test_statements_take_part_in_the_second_half_only(made: Toy) -> None:
    forget = tuple(replace(row, kind="statement") for row in made.data.streams["forget"][:4]) + made.data.streams["forget"][4:]
    data = replace(made.data, streams={**made.data.streams, "forget": forget})
    method = FLAT(FLATConfig(name="flat"), made.context(data=data))
    method.setup(made.lm)
    batch = made.batch()["forget"]
    expected = (probability(made.lm, batch).tanh() / 2).mean()
    assert method.loss(made.lm, {"forget": batch}).total.item() == pytest.approx(expected.item(), abs=1e-5)


def test_reads_the_retain_stream_only_when_asked(made: Toy) -> None:
    assert FLAT.streams_of(FLATConfig(name="flat")) == ("forget",)
    assert FLAT.streams_of(FLATConfig(name="flat", retain="nll")) == ("forget", "retain")
    _, method = made.ready("flat", retain="nll", retain_weight=3.0)
    out = method.loss(made.lm, made.batch())
    assert out.total.item() == pytest.approx(out.terms["forget"].item() + 3 * out.terms["retain"].item(), rel=1e-5)


@pytest.mark.parametrize(("key", "value"), [("divergence", "chi"), ("retain", "js"), ("retain_weight", -1.0)])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        FLATConfig(name="flat", **{key: value})
