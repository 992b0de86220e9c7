from __future__ import annotations

import copy
import doctest

import pytest
import torch

from tests.oracles.load import oracle, stacked
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.preference import sequence_logprob
from unlearn.functional.tokens import answer_logits, token_mean, token_nll
from unlearn.methods import npo
from unlearn.methods.npo import NPOConfig, npo_loss
from unlearn.models.decoder import blocks_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def logprob(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logits_AV, targets_A, row_A = answer_logits(logits_BTV, labels_BT)
    return sequence_logprob(token_nll(logits_AV, targets_A), row_A, len(labels_BT))


def nll(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logits_AV, targets_A, _ = answer_logits(logits_BTV, labels_BT)
    return token_mean(token_nll(logits_AV, targets_A))


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(npo)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("retain", [False, True])
def test_value_and_gradients_agree_with_open_unlearning(beta: float, retain: bool) -> None:
    data = oracle("losses")
    expected = data["losses"][f"NPO_beta{beta}" if retain else f"NPO_forget_only_beta{beta}"]
    (forget, labels), (kept, kept_labels) = stacked(data["inputs"]["forget"]), stacked(data["inputs"]["holdout"])
    before = torch.tensor(data["inputs"]["ref_logits"]["forget"], dtype=torch.float64)
    forget.requires_grad_(), kept.requires_grad_()
    loss = npo_loss(logprob(forget, labels), logprob(before, labels), beta)
    total = loss + nll(kept, kept_labels) if retain else loss
    total.backward()
    assert total.item() == pytest.approx(expected["loss"], abs=1e-6)
    assert forget.grad is not None
    assert forget.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_forget"], abs=1e-6)
    torch.testing.assert_close(forget.grad[0], torch.tensor(expected["grad_forget_row0"], dtype=torch.float64), atol=1e-6, rtol=0)
    if retain:
        assert kept.grad is not None
        assert kept.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_retain"], abs=1e-6)


def test_a_small_beta_has_the_gradient_of_ascent_on_sums() -> None:
    logprob_B = torch.tensor([-2.0, -9.0], dtype=torch.float64, requires_grad=True)
    npo_loss(logprob_B, torch.tensor([-1.0, -3.0], dtype=torch.float64), beta=1e-8).backward()
    assert logprob_B.grad is not None
    assert logprob_B.grad.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_at_the_start_the_term_is_two_ln_two_over_beta_and_retain_is_the_cross_entropy(made: Toy) -> None:
    batch = made.batch()
    out = made.method("npo", beta=0.5, forget_weight=3.0, retain_weight=2.0).loss(made.lm, batch)
    assert out.terms["forget"].item() == pytest.approx(4 * torch.tensor(2.0).log().item(), abs=1e-4)
    logits = made.lm(input_ids=batch["retain"].input_ids_BT, attention_mask=batch["retain"].attention_mask_BT).logits
    assert out.terms["retain"].item() == pytest.approx(nll(logits, batch["retain"].labels_BT).item(), rel=1e-5)
    assert out.total.item() == pytest.approx(3 * out.terms["forget"].item() + 2 * out.terms["retain"].item(), rel=1e-6)


def test_the_reference_stays_where_it_was_when_the_model_moves(made: Toy) -> None:
    batch = made.batch()["forget"]
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
        new, old = (logprob(m(input_ids=batch.input_ids_BT).logits, batch.labels_BT) for m in (changed, made.lm))
    expected = -20 * torch.nn.functional.logsigmoid(-0.1 * (new - old)).mean()
    out = made.method("npo", retain="none").loss(changed, {"forget": batch})
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert set(out.terms) == {"forget"}


def test_streams_and_references_follow_the_retain_term() -> None:
    cls = npo.NPO
    kinds = {kind: NPOConfig(name="npo", retain=kind) for kind in ("nll", "kl", "none")}
    assert {k: cls.streams_of(c) for k, c in kinds.items()} == {
        "nll": ("forget", "retain"),
        "kl": ("forget", "retain"),
        "none": ("forget",),
    }
    assert {k: cls.reference_streams_of(c) for k, c in kinds.items()} == {
        "nll": ("forget",),
        "kl": ("forget", "retain"),
        "none": ("forget",),
    }
    assert all(cls.required(c) == {"reference_logprobs"} for c in kinds.values())


@pytest.mark.parametrize(("key", "value"), [("beta", 0.0), ("beta", float("inf")), ("forget_weight", -1.0), ("retain", "js")])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        NPOConfig(name="npo", **{key: value})
