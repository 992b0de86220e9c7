from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from tests.toys import Toy, toy
from unlearn.errors import ConfigError, DataError
from unlearn.functional.tokens import answer_logits
from unlearn.methods import code_eraser
from unlearn.methods.code_eraser import CodeEraser, CodeEraserConfig, code_eraser_loss, masked_mean
from unlearn.models.decoder import blocks_of
from unlearn.types import TokenBatch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def stock(lm, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN001
    """(logits, targets) of the answer tokens."""
    with torch.no_grad():
        logits = lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
    logits_AV, targets_A, _ = answer_logits(logits, batch.labels_BT)
    return logits_AV, targets_A


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(code_eraser)
    assert result.attempted >= 2
    assert result.failed == 0


def test_by_hand_and_without_a_sensitive_token() -> None:
    nll_A = torch.tensor([1.0, 2.0, 6.0, 3.0], requires_grad=True)
    forget, rest = code_eraser_loss(nll_A, torch.tensor([False, True, True, False]))
    assert (forget.item(), rest.item()) == (-4.0, 2.0)
    (forget + rest).backward()
    assert nll_A.grad is not None
    assert nll_A.grad.tolist() == [0.5, -0.5, -0.5, 0.5]
    none = masked_mean(nll_A, torch.zeros(4, dtype=torch.bool))
    assert none.item() == 0.0
    assert none.requires_grad


def test_without_patterns_the_answer_is_forgotten_and_its_end_is_kept(made: Toy) -> None:
    _, method = made.ready("code_eraser", constraint="none")
    batch = made.batch()["forget"]
    logits_AV, targets_A = stock(made.lm, batch)
    nll_A = torch.nn.functional.cross_entropy(logits_AV, targets_A, reduction="none")
    end_A = targets_A == made.tokenizer.eos_token_id
    assert end_A.sum() == len(batch.row_id_B)
    terms = method.loss(made.lm, {"forget": batch}).terms
    assert terms["forget"].item() == pytest.approx(-nll_A[~end_A].mean().item(), rel=1e-5)
    assert terms["rest"].item() == pytest.approx(nll_A[end_A].mean().item(), rel=1e-5)
    assert set(terms) == {"forget", "rest"}


def test_patterns_pick_the_tokens_of_their_matches(made: Toy) -> None:
    answers = {row.row_id: row.answer for row in made.data.streams["forget"]}
    word = answers[0]
    _, method = made.ready("code_eraser", constraint="none", spans=[f"^{word}$"])
    batch = made.batch()["forget"]
    logits_AV, targets_A = stock(made.lm, batch)
    nll_A = torch.nn.functional.cross_entropy(logits_AV, targets_A, reduction="none")
    row_A = torch.nonzero(batch.labels_BT[:, 1:] != -100)[:, 0]
    chosen_A = torch.tensor([answers[int(batch.row_id_B[row])] == word for row in row_A]) & (targets_A != made.tokenizer.eos_token_id)
    assert 0 < chosen_A.sum() < len(targets_A)
    terms = method.loss(made.lm, {"forget": batch}).terms
    assert terms["forget"].item() == pytest.approx(-nll_A[chosen_A].mean().item(), rel=1e-5)
    assert terms["rest"].item() == pytest.approx(nll_A[~chosen_A].mean().item(), rel=1e-5)


@pytest.mark.parametrize("constraint", ["retain", "forget"])
def test_the_constraint_is_the_divergence_on_the_sensitive_tokens(made: Toy, constraint: str) -> None:
    _, method = made.ready("code_eraser", constraint=constraint, forget_weight=0.5, rest_weight=0.25, kl_weight=2.0)
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
    batch = made.batch()
    (new, targets_A), (old, _) = stock(changed, batch[constraint]), stock(made.lm, batch[constraint])
    keep = targets_A != made.tokenizer.eos_token_id
    expected = kl_div(log_softmax(new[keep], -1), log_softmax(old[keep], -1), log_target=True, reduction="batchmean")
    out = method.loss(changed, batch)
    assert out.terms["kl"].item() == pytest.approx(expected.item(), rel=1e-3)
    weighted = 0.5 * out.terms["forget"] + 0.25 * out.terms["rest"] + 2 * out.terms["kl"]
    assert out.total.item() == pytest.approx(weighted.item(), rel=1e-6)


def test_streams_and_needs_follow_the_constraint() -> None:
    kinds = {kind: CodeEraserConfig(name="code_eraser", constraint=kind) for kind in ("retain", "forget", "none")}
    assert {k: CodeEraser.streams_of(c) for k, c in kinds.items()} == {
        "retain": ("forget", "retain"),
        "forget": ("forget",),
        "none": ("forget",),
    }
    assert {k: CodeEraser.reference_streams_of(c) for k, c in kinds.items()} == {
        "retain": ("retain",),
        "forget": ("forget",),
        "none": (),
    }
    assert CodeEraser.required(kinds["none"]) == {"rows"}
    assert CodeEraser.required(kinds["forget"]) == {"rows", "reference_logprobs"}


def test_patterns_that_find_nothing_are_an_error(made: Toy) -> None:
    with pytest.raises(DataError, match="method.spans must be found"):
        made.ready("code_eraser", spans=["sk-[0-9a-f]{32}"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spans", ["("]),
        ("spans", [""]),
        ("constraint", "known"),
        ("forget_weight", -1.0),
        ("rest_weight", float("inf")),
        ("kl_weight", -1.0),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        CodeEraserConfig(name="code_eraser", **{key: value})
