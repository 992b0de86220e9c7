from __future__ import annotations

import copy
import doctest
import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from tests.toys import Toy, toy
from unlearn.errors import ConfigError, DataError
from unlearn.functional.divergence import js_divergence
from unlearn.functional.tokens import answer_logits
from unlearn.methods import jensun
from unlearn.methods.jensun import JensUn, JensUnConfig, jensun_loss, one_token_divergence
from unlearn.models.decoder import blocks_of
from unlearn.models.forward import forward

LOGITS_AV = 3 * torch.randn(6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET_A = torch.tensor([0, 3, 3, 10, 5, 7])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(jensun)
    assert result.attempted >= 1
    assert result.failed == 0


def test_value_equals_scipy() -> None:
    onehot = torch.nn.functional.one_hot(TARGET_A, 11).numpy()
    expected = (jensenshannon(LOGITS_AV.softmax(-1).numpy(), onehot, axis=1) ** 2).mean()
    assert jensun_loss(LOGITS_AV, TARGET_A).item() == pytest.approx(expected, rel=1e-9)


def test_gradient() -> None:
    assert torch.autograd.gradcheck(lambda x: jensun_loss(x, TARGET_A), (LOGITS_AV.clone().requires_grad_(),))


def test_is_zero_on_the_refusal_and_at_most_ln_two_however_unlikely_it_is() -> None:
    nll_A = torch.tensor([0.0, 1e-6, 1.0, 30.0, 1e4, 1e30], requires_grad=True)
    value_A = one_token_divergence(nll_A)
    assert value_A[0].item() == pytest.approx(0.0, abs=1e-7)
    assert (value_A <= math.log(2) + 1e-6).all()
    assert (value_A[:4].diff() >= 0).all()
    value_A.sum().backward()
    assert nll_A.grad is not None
    assert nll_A.grad.isfinite().all()


def test_targets_repeat_the_refusal_over_every_answer(made: Toy) -> None:
    method = made.method("jensun", refusal="I don't know.")
    method.setup(made.lm)
    texts = ("Paris", "London and Paris and English and London")
    rows = [replace(row, answer=text) for row, text in zip(made.data.streams["forget"][:2], texts, strict=True)]
    (batch,) = made.reader().batches(rows)
    refusal = made.tokenizer(" I don't know.", add_special_tokens=False)["input_ids"]
    assert len(refusal) > 1
    out = forward(made.lm, batch)
    targets_A = method.targets(batch, out)
    for row in range(2):
        said = targets_A[out.row_A == row].tolist()
        assert said == [refusal[t % len(refusal)] for t in range(len(said))]
    assert max((out.row_A == row).sum().item() for row in range(2)) > len(refusal)


def test_the_loss_is_the_two_divergences_on_the_stock_model(made: Toy) -> None:
    method = made.method("jensun", forget_weight=0.5, retain_weight=2.0)
    method.setup(made.lm)
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
    batch = made.batch()

    def stock(lm, stream: str) -> torch.Tensor:  # noqa: ANN001
        b = batch[stream]
        with torch.no_grad():
            return answer_logits(lm(input_ids=b.input_ids_BT, attention_mask=b.attention_mask_BT).logits, b.labels_BT)[0]

    out = method.loss(changed, batch)
    retain = js_divergence(stock(made.lm, "retain"), stock(changed, "retain")).mean().item()
    unknown = made.tokenizer(" unknown", add_special_tokens=False)["input_ids"]
    p_AV = stock(changed, "forget").softmax(-1)
    targets = torch.tensor([unknown[t % len(unknown)] for row in (batch["forget"].labels_BT != -100).sum(1).tolist() for t in range(row)])
    forget = (jensenshannon(p_AV.numpy(), torch.nn.functional.one_hot(targets, p_AV.shape[1]).numpy(), axis=1) ** 2).mean()
    assert out.terms["forget"].item() == pytest.approx(forget, rel=1e-4)
    assert out.terms["retain"].item() == pytest.approx(retain, rel=1e-3)
    assert out.total.item() == pytest.approx(0.5 * forget + 2 * retain, rel=1e-3)
    assert method.loss(made.lm, batch).terms["retain"].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("retain", ["nll", "kl", "none"])
def test_other_retain_terms(made: Toy, retain: str) -> None:
    _, method = made.ready("jensun", retain=retain)
    terms = method.loss(made.lm, made.batch()).terms
    assert set(terms) == ({"forget"} if retain == "none" else {"forget", "retain"})


def test_needs_follow_the_retain_term() -> None:
    needs = {kind: JensUn.required(JensUnConfig(name="jensun", retain=kind)) for kind in JensUnConfig.RETAIN}
    assert needs["js"] == needs["kl"] == {"rows", "reference_logprobs"}
    assert needs["nll"] == needs["none"] == {"rows"}


def test_a_source_without_refusals_asks_for_one(made: Toy) -> None:
    data = replace(made.data, refusals=())
    with pytest.raises(DataError, match="method.refusal must be given"):
        JensUn(JensUnConfig(name="jensun"), made.context(data=data)).setup(made.lm)
    method = JensUn(JensUnConfig(name="jensun", refusal="No idea"), made.context(data=data))
    method.setup(made.lm)
    assert set(method.refusal_ids) == {row.row_id for row in made.data.streams["forget"]}


@pytest.mark.parametrize(("key", "value"), [("refusal", "  "), ("forget_weight", -1.0), ("retain_weight", -1.0), ("retain", "jsd")])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        JensUnConfig(name="jensun", **{key: value})
