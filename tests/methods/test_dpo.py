from __future__ import annotations

import copy
import doctest
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.oracles.load import oracle, stacked
from tests.toys import Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.preference import sequence_logprob
from unlearn.functional.tokens import answer_logits, token_nll
from unlearn.methods import dpo
from unlearn.methods.dpo import DPO, DPOConfig, dpo_loss
from unlearn.models.decoder import blocks_of
from unlearn.types import TokenBatch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def logprob(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logits_AV, targets_A, row_A = answer_logits(logits_BTV, labels_BT)
    return sequence_logprob(token_nll(logits_AV, targets_A), row_A, len(labels_BT))


def stock(lm, batch: TokenBatch) -> dict[int, float]:  # noqa: ANN001
    with torch.no_grad():
        logits = lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
    return dict(zip(batch.row_id_B.tolist(), logprob(logits, batch.labels_BT).tolist(), strict=True))


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(dpo)
    assert result.attempted >= 1
    assert result.failed == 0


def test_value_and_gradients_agree_with_open_unlearning() -> None:
    """The file lacks the reference of the alternate rows: the gradients of the forget rows tell it, and the rest must follow."""
    data = oracle("losses")
    expected, ascent = data["losses"]["DPO_beta0.1"], data["losses"]["NPO_forget_only_beta0.1"]
    (forget, labels), (other, other_labels) = stacked(data["inputs"]["forget"]), stacked(data["inputs"]["paraphrase"])
    before = torch.tensor(data["inputs"]["ref_logits"]["forget"], dtype=torch.float64)
    forget.requires_grad_(), other.requires_grad_()
    rejected_N = logprob(forget, labels) - logprob(before, labels)
    ratio_N = torch.tensor(expected["grad_l2_forget"], dtype=torch.float64) / torch.tensor(ascent["grad_l2_forget"], dtype=torch.float64)
    chosen_N = rejected_N.detach() - torch.logit(ratio_N * torch.sigmoid(0.1 * rejected_N.detach())) / 0.1
    other_before_N = (logprob(other, other_labels) - chosen_N).detach()
    loss = dpo_loss(logprob(other, other_labels) - other_before_N, rejected_N, beta=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    assert forget.grad is not None
    assert other.grad is not None
    assert forget.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_forget"], abs=1e-6)
    assert other.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(expected["grad_l2_alt"], abs=1e-6)
    torch.testing.assert_close(forget.grad[0], torch.tensor(expected["grad_forget_row0"], dtype=torch.float64), atol=1e-6, rtol=0)


def test_at_the_start_neither_side_leads(made: Toy) -> None:
    lm, method = made.ready("dpo", beta=0.5)
    assert method.loss(lm, made.batch()).terms["forget"].item() == pytest.approx(4 * math.log(2), abs=1e-4)


def test_the_loss_is_the_formula_on_the_stock_models(made: Toy) -> None:
    data = replace(made.data, refusals=("unknown", "I don't know."))
    method = DPO(DPOConfig(name="dpo", retain="none"), made.context(data=data))
    method.setup(made.lm)
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
    batch, reader, seen = made.batch()["forget"], made.reader(), set()
    for step in range(3):
        method.before_step(changed, step, 3)
        offered = method.answers(made.lm, data.streams["forget"])
        texts = {i: offered[i][method.alternates.pick(i, step)] for i in batch.row_id_B.tolist()}
        rows = [replace(row, answer=texts[row.row_id]) for row in data.streams["forget"] if row.row_id in texts]
        (other,) = reader.batches(rows)
        won, lost = ({i: stock(changed, b)[i] - stock(made.lm, b)[i] for i in texts} for b in (other, batch))
        lead = torch.tensor([won[i] - lost[i] for i in texts])
        out = method.loss(changed, {"forget": batch})
        assert out.total.item() == pytest.approx((-20 * logsigmoid(0.1 * lead)).mean().item(), rel=1e-4)
        seen.add(tuple(texts.values()))
    assert len(seen) > 1


def test_a_batch_without_any_question_gives_a_zero_that_reaches_the_weights(made: Toy) -> None:
    lm, _ = made.ready("dpo")
    statements = tuple(replace(row, kind="statement") if row.row_id < 4 else row for row in made.data.streams["forget"])
    data = replace(made.data, streams={**made.data.streams, "forget": statements})
    method = DPO(DPOConfig(name="dpo", retain="none"), made.context(data=data))
    method.setup(lm)
    out = method.loss(lm, {"forget": made.batch()["forget"]})
    out.total.backward()
    assert out.total.item() == 0.0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in lm.parameters() if p.requires_grad)


def test_references_follow_the_retain_term() -> None:
    assert DPO.reference_streams_of(DPOConfig(name="dpo")) == ("forget",)
    assert DPO.reference_streams_of(DPOConfig(name="dpo", retain="kl")) == ("forget", "retain")


@pytest.mark.parametrize(("key", "value"), [("beta", 0.0), ("forget_weight", -1.0), ("number", 0), ("retain", "js")])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        DPOConfig(name="dpo", **{key: value})
