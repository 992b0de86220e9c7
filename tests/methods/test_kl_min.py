from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from tests.oracles.agree import agrees, side
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.tokens import answer_logits, token_nll
from unlearn.methods.kl_min import KLMin, KLMinConfig, kl_min_loss
from unlearn.models.decoder import blocks_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def everything(lm, batch):  # noqa: ANN001, ANN201
    return lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits


def change(lm) -> None:  # noqa: ANN001
    with torch.no_grad():
        next(blocks_of(lm)[0].parameters()).add_(0.1)


def test_by_hand() -> None:
    loss = kl_min_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.25, 0.75]), forget_weight=2.0, retain_weight=4.0)
    assert loss.item() == -2.0 * 2.0 + 4.0 * 0.5


def test_averaged_over_every_position_it_is_the_published_loss() -> None:
    forget, retain = side("forget"), side("holdout")
    logits_AV, targets_A, _ = answer_logits(forget.logits_BTV, forget.labels_BT)
    agrees("GradDiff_KL", kl_min_loss(token_nll(logits_AV, targets_A), kl_divergence(retain.ref_BTV, retain.logits_BTV)), forget, retain)


def test_its_retain_half_alone_is_the_published_one() -> None:
    forget, retain = side("forget"), side("holdout")
    logits_AV, targets_A, _ = answer_logits(forget.logits_BTV, forget.labels_BT)
    kl_BT = kl_divergence(retain.ref_BTV, retain.logits_BTV)
    agrees("KL_retain", kl_min_loss(token_nll(logits_AV, targets_A), kl_BT, forget_weight=0.0), retain=retain)


def test_averaged_over_answers_it_is_another_loss(made: Toy) -> None:
    lm, method = made.ready("kl_min", forget_weight=0.0)
    change(lm)
    batch = made.batch()["retain"]
    keep = batch.labels_BT[:, 1:] != -100
    new, old = (log_softmax(everything(model, batch)[:, :-1][keep], -1) for model in (lm, made.lm))
    expected = kl_div(new, old, log_target=True, reduction="batchmean").item()
    assert method.loss(lm, made.batch()).total.item() == pytest.approx(expected, rel=1e-3)
    published = kl_divergence(everything(made.lm, batch), everything(lm, batch)).mean().item()
    assert abs(published - expected) > 0.02 * expected


def test_compat_is_the_published_average_of_the_stock_models(made: Toy) -> None:
    lm, method = made.ready("kl_min", compat=True, retain_weight=2.0)
    batch = made.batch()
    assert method.loss(lm, batch).terms["retain"].item() == pytest.approx(0.0, abs=1e-6)
    change(lm)
    forget = cross_entropy(everything(lm, batch["forget"])[:, :-1].flatten(0, 1), batch["forget"].labels_BT[:, 1:].flatten()).item()
    new, old = (log_softmax(everything(model, batch["retain"]).flatten(0, 1), -1) for model in (lm, made.lm))
    kl = kl_div(new, old, log_target=True, reduction="batchmean").item()
    out = method.loss(lm, batch)
    assert out.total.item() == pytest.approx(-forget + 2.0 * kl, rel=1e-4)
    out.total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in lm.parameters())


def test_compat_adds_nothing_to_train_or_save_and_needs_no_stored_reference(made: Toy) -> None:
    _, method = made.ready("kl_min", compat=True)
    assert not list(method.parameters())
    assert not method.state_dict()
    assert KLMin.required(KLMinConfig(name="kl_min", compat=True)) == frozenset()
    assert KLMin.reference_streams_of(KLMinConfig(name="kl_min", compat=True)) == ()
    assert KLMin.reference_streams_of(KLMinConfig(name="kl_min")) == ("retain",)


def test_is_gradient_difference_with_a_kl_tether(made: Toy) -> None:
    lm = copy.deepcopy(made.lm)
    change(lm)
    ours, other = (made.method(name, **kind).loss(lm, made.batch()) for name, kind in (("kl_min", {}), ("grad_diff", {"retain": "kl"})))
    assert ours.total.item() == pytest.approx(other.total.item(), rel=1e-6)


@pytest.mark.parametrize(("key", "value"), [("forget_weight", -1.0), ("retain_weight", -1.0), ("retain_weight", float("inf"))])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^method.{key} must be"):
        KLMinConfig(name="kl_min", **{key: value})
