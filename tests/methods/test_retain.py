from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.methods.base import MethodContext
from unlearn.methods.retain import RetainConfig, RetainMethod, TradeOffConfig, retain_needs, retain_term
from unlearn.models.decoder import blocks_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def answers(lm, batch):  # noqa: ANN001, ANN201
    """Stock logits at the answer positions, and the right tokens."""
    logits, labels = lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1], batch.labels_BT[:, 1:]
    return logits[labels != -100], labels[labels != -100]


def changed(lm):  # noqa: ANN001, ANN201
    lm = copy.deepcopy(lm)
    with torch.no_grad():
        next(blocks_of(lm)[0].parameters()).add_(0.1)
    return lm


def test_nll_is_the_cross_entropy_of_the_stock_model(made: Toy) -> None:
    batch = made.batch()["retain"]
    expected = cross_entropy(*answers(made.lm, batch)).item()
    assert retain_term(made.lm, batch, MethodContext(n_blocks=4), "nll").item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_zero_on_the_original_and_the_divergence_over_answer_tokens_after_a_change(made: Toy) -> None:
    batch, lm = made.batch()["retain"], changed(made.lm)
    assert retain_term(made.lm, batch, made.context(), "kl").item() == pytest.approx(0.0, abs=1e-5)
    new, old = (log_softmax(answers(model, batch)[0], -1) for model in (lm, made.lm))
    expected = kl_div(new, old, log_target=True, reduction="batchmean").item()
    assert retain_term(lm, batch, made.context(), "kl").item() == pytest.approx(expected, rel=1e-3)


def test_none_is_zero_without_a_forward_pass(made: Toy) -> None:
    assert retain_term(None, made.batch()["retain"], MethodContext(n_blocks=4), "none").item() == 0.0


def test_kl_without_a_reference_is_refused(made: Toy) -> None:
    with pytest.raises(ValueError, match="reference"):
        retain_term(made.lm, made.batch()["retain"], MethodContext(n_blocks=4), "kl")


@pytest.mark.parametrize("kind", ["nll", "kl", "none"])
def test_a_method_asks_for_what_its_kind_reads(kind: str) -> None:
    class Held(RetainMethod):
        streams = ("forget", "retain")
        needs = frozenset({"reference_logprobs", "rows"})
        reference_streams = ("retain",)

    config = RetainConfig(name="x", retain=kind)
    assert retain_needs(kind) == ({"reference_logprobs"} if kind == "kl" else set())
    assert Held.required(config) == {"rows"} | retain_needs(kind)
    assert Held.streams_of(config) == (("forget",) if kind == "none" else ("forget", "retain"))
    assert Held.reference_streams_of(config) == (("retain",) if kind == "kl" else ())


def test_total_is_the_weighted_sum_and_terms_come_before_weighting(made: Toy) -> None:
    batch = made.batch()
    method = made.method("wga", retain="nll", retain_weight=3.0)
    loss = torch.tensor(2.0)
    out = method.held(made.lm, batch, loss, 0.5)
    expected = cross_entropy(*answers(made.lm, batch["retain"])).item()
    assert out.total.item() == pytest.approx(0.5 * 2.0 + 3.0 * expected, rel=1e-5)
    assert out.terms["forget"] is loss
    assert out.terms["retain"].item() == pytest.approx(expected, rel=1e-5)


def test_without_a_retain_term_the_stream_is_not_read(made: Toy) -> None:
    method = made.method("wga", retain="none")
    out = method.held(made.lm, {}, torch.tensor(2.0), 0.5, {"forget": torch.tensor(-1.0)})
    assert (out.total.item(), out.terms) == (1.0, {"forget": torch.tensor(-1.0)})


@pytest.mark.parametrize(("key", "value"), [("retain", "kll"), ("retain_weight", -1.0), ("retain_weight", float("inf"))])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^method.{key} must be"):
        RetainConfig(name="x", **{key: value})


def test_a_subclass_may_allow_fewer_kinds() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Fewer(TradeOffConfig):
        RETAIN: ClassVar[tuple[str, ...]] = ("kl",)

        retain: str = "kl"

    assert Fewer(name="x").retain == "kl"
    with pytest.raises(ConfigError, match=r"^method.retain must be one of kl; found 'nll'"):
        Fewer(name="x", retain="nll")
    with pytest.raises(ConfigError, match=r"^method.forget_weight must be finite and >= 0"):
        Fewer(name="x", forget_weight=float("nan"))
