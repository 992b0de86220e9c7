from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from tests.oracles.agree import agrees, side
from tests.toys import Toy, toy
from unlearn.errors import ConfigError, ModelError
from unlearn.functional.tokens import answer_logits
from unlearn.methods.undial import UNDIAL, UNDIALConfig, counted_from_the_end, undial_loss
from unlearn.models.decoder import blocks_of

BETA = 2.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def everything(lm, batch):  # noqa: ANN001, ANN201
    return lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1]


def change(lm) -> None:  # noqa: ANN001
    with torch.no_grad():
        next(blocks_of(lm)[0].parameters()).add_(0.1)


def test_by_hand() -> None:
    ref_AV = torch.tensor([[0.6, 0.3, 0.1]]).log()
    now_AV = torch.tensor([[0.5, 0.25, 0.25]]).log()
    q = (0.2 / 0.6, 0.3 / 0.6, 0.1 / 0.6)
    expected = -(q[0] * math.log(0.5) + q[1] * math.log(0.25) + q[2] * math.log(0.25))
    assert undial_loss(ref_AV, now_AV, torch.tensor([0]), math.log(3)).item() == pytest.approx(expected, rel=1e-5)


def test_at_every_position_with_labels_unmasked_it_is_the_published_loss() -> None:
    forget = side("forget")
    logits_NV, ref_NV = forget.logits_BTV[:, :-1].flatten(0, 1), forget.ref_BTV[:, :-1].flatten(0, 1)
    targets_N = counted_from_the_end(forget.ids_BT, logits_NV.shape[-1]).flatten()
    agrees("UNDIAL_beta10_labels_unmasked", undial_loss(ref_NV, logits_NV, targets_N, 10.0), forget)


def test_at_answer_tokens_it_is_another_loss_and_the_rest_of_the_batch_has_no_say() -> None:
    forget = side("forget")
    logits_AV, targets_A, _ = answer_logits(forget.logits_BTV, forget.labels_BT)
    ref_AV, _, _ = answer_logits(forget.ref_BTV, forget.labels_BT)
    loss = undial_loss(ref_AV, logits_AV, targets_A, 10.0)
    loss.backward()
    soft_AV = (ref_AV - 10.0 * one_hot(targets_A, ref_AV.shape[-1])).softmax(-1)
    assert loss.item() == pytest.approx(cross_entropy(logits_AV, soft_AV).item(), abs=1e-9)
    assert abs(loss.item() - 2.6670102323216525) > 1e-2
    assert forget.logits_BTV.grad is not None
    silent_BT = torch.cat([forget.labels_BT[:, 1:] == -100, torch.ones(len(forget.labels_BT), 1, dtype=torch.bool)], 1)
    assert forget.logits_BTV.grad[silent_BT].abs().max().item() == 0


def test_the_minimum_is_the_adjusted_prediction_and_beta_zero_is_plain_distillation() -> None:
    torch.manual_seed(0)
    ref_AV, targets_A = torch.randn(3, 6), torch.tensor([0, 1, 5])
    at_AV = (ref_AV - BETA * one_hot(targets_A, 6)).requires_grad_()
    undial_loss(ref_AV, at_AV, targets_A, BETA).backward()
    torch.testing.assert_close(at_AV.grad, torch.zeros(3, 6), rtol=0, atol=1e-7)
    expected = torch.distributions.Categorical(logits=ref_AV).entropy().mean()
    torch.testing.assert_close(undial_loss(ref_AV, ref_AV, targets_A, 0.0), expected)


def test_masked_labels_count_from_the_end_and_a_small_vocabulary_is_refused() -> None:
    assert counted_from_the_end(torch.tensor([[0, -100, 3], [0, 149, -100]]), 150).tolist() == [[50, 3], [149, 50]]
    with pytest.raises(ModelError, match="at least 100 tokens"):
        counted_from_the_end(torch.tensor([[0, -100]]), 99)


def test_default_reads_the_stored_reference_at_answer_tokens(made: Toy) -> None:
    lm, method = made.ready("undial", beta=BETA)
    change(lm)
    batch = made.batch()["forget"]
    labels = batch.labels_BT[:, 1:]
    keep = labels != -100
    soft = (everything(made.lm, batch)[keep] - BETA * one_hot(labels[keep], 512)).softmax(-1)
    expected = cross_entropy(everything(lm, batch)[keep], soft).item()
    assert method.loss(lm, {"forget": batch}).total.item() == pytest.approx(expected, rel=1e-4)


def test_compat_averages_over_the_whole_batch_and_lowers_the_token_a_hundred_from_the_end(made: Toy) -> None:
    lm, method = made.ready("undial", beta=BETA, compat=True)
    change(lm)
    batch = made.batch()["forget"]
    labels = batch.labels_BT[:, 1:].clone()
    labels[labels == -100] = 512 - 100
    soft = (everything(made.lm, batch) - BETA * one_hot(labels, 512)).softmax(-1)
    expected = cross_entropy(everything(lm, batch).flatten(0, 1), soft.flatten(0, 1)).item()
    out = method.loss(lm, {"forget": batch})
    assert out.total.item() == pytest.approx(expected, rel=1e-4)
    out.total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in lm.parameters())
    assert not list(method.parameters())


@pytest.mark.parametrize(
    ("settings", "streams", "references"),
    [
        ({}, ("forget",), ("forget",)),
        ({"retain": "nll"}, ("forget", "retain"), ("forget",)),
        ({"retain": "kl"}, ("forget", "retain"), ("forget", "retain")),
        ({"compat": True}, ("forget",), ()),
        ({"compat": True, "retain": "kl"}, ("forget", "retain"), ("retain",)),
    ],
)
def test_asks_for_the_references_it_reads(settings: dict, streams: tuple[str, ...], references: tuple[str, ...]) -> None:
    config = UNDIALConfig(name="undial", **settings)
    assert UNDIAL.streams_of(config) == streams
    assert UNDIAL.reference_streams_of(config) == references
    assert UNDIAL.required(config) == (frozenset({"reference_logprobs"}) if references else frozenset())


@pytest.mark.parametrize(("key", "value"), [("beta", -1.0), ("beta", float("inf")), ("forget_weight", -1.0), ("retain", "kll")])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^method.{key} must be"):
        UNDIALConfig(name="undial", **{key: value})
