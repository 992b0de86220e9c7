from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from tests.oracles.agree import agrees, side
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.tokens import answer_logits, token_mean, token_nll
from unlearn.methods.grad_diff import GradDiffConfig, grad_diff_loss
from unlearn.models.decoder import blocks_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def stock(lm, batch):  # noqa: ANN001, ANN201
    logits = lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1].flatten(0, 1)
    return logits, batch.labels_BT[:, 1:].flatten()


def test_by_hand() -> None:
    loss = grad_diff_loss(torch.tensor([1.0, 3.0]), torch.tensor(0.5), forget_weight=2.0, retain_weight=4.0)
    assert loss.item() == -2.0 * 2.0 + 4.0 * 0.5


@pytest.mark.parametrize("kind", ["GradAscent", "GradDiff_NLL", "GradDiff_KL"])
def test_value_and_gradient_are_the_published_ones(kind: str) -> None:
    forget, retain = side("forget"), side("holdout")
    nll_A = token_nll(*answer_logits(forget.logits_BTV, forget.labels_BT)[:2])
    terms = {
        "GradAscent": token_mean(token_nll(*answer_logits(retain.logits_BTV, retain.labels_BT)[:2])),
        "GradDiff_NLL": token_mean(token_nll(*answer_logits(retain.logits_BTV, retain.labels_BT)[:2])),
        "GradDiff_KL": kl_divergence(retain.ref_BTV, retain.logits_BTV).mean(),
    }
    weight = 0.0 if kind == "GradAscent" else 1.0
    agrees(kind, grad_diff_loss(nll_A, terms[kind], retain_weight=weight), forget, retain)


def test_nll_is_the_difference_of_two_cross_entropies(made: Toy) -> None:
    batch = made.batch()
    forget, retain = (cross_entropy(*stock(made.lm, batch[s]), ignore_index=-100) for s in ("forget", "retain"))
    out = made.method("grad_diff", forget_weight=0.5, retain_weight=2.0).loss(made.lm, batch)
    assert out.total.item() == pytest.approx((-0.5 * forget + 2 * retain).item(), rel=1e-5)


def test_kl_is_zero_at_the_start_and_the_divergence_over_answer_tokens_later(made: Toy) -> None:
    batch, method = made.batch(), made.method("grad_diff", retain="kl", forget_weight=0.0)
    assert method.loss(made.lm, batch).total.item() == pytest.approx(0.0, abs=1e-5)
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
    new, labels = stock(changed, batch["retain"])
    old, _ = stock(made.lm, batch["retain"])
    keep = labels != -100
    expected = kl_div(log_softmax(new[keep], -1), log_softmax(old[keep], -1), log_target=True, reduction="batchmean")
    assert method.loss(changed, batch).total.item() == pytest.approx(expected.item(), rel=1e-3)


def test_nll_needs_no_reference_and_kl_does() -> None:
    cls = __import__("unlearn.methods.grad_diff", fromlist=["GradDiff"]).GradDiff
    assert not cls.required(GradDiffConfig(name="grad_diff"))
    assert cls.required(GradDiffConfig(name="grad_diff", retain="kl")) == {"reference_logprobs"}


@pytest.mark.parametrize(("key", "value"), [("forget_weight", -1.0), ("retain_weight", -1.0), ("retain", "kll")])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        GradDiffConfig(name="grad_diff", **{key: value})
