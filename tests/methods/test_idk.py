from __future__ import annotations

import doctest
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.toys import Toy, toy
from unlearn.errors import ConfigError, DataError
from unlearn.methods import idk
from unlearn.methods.answers import nothing
from unlearn.methods.idk import IDK, IDKConfig
from unlearn.types import EntityData


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def with_forget(data: EntityData, kinds: list[str]) -> EntityData:
    """The data with the first forget rows turned into rows of these kinds."""
    forget = data.streams["forget"]
    turned = [replace(row, kind=kind) for row, kind in zip(forget, kinds, strict=False)]
    return replace(data, streams={**data.streams, "forget": (*turned, *forget[len(turned) :])})


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(idk)
    assert result.attempted >= 1
    assert result.failed == 0


def test_is_the_cross_entropy_of_the_refusals_on_the_stock_model(made: Toy) -> None:
    _, method = made.ready("idk", forget_weight=0.5, retain_weight=2.0)
    batch, reader = made.batch(), made.reader()
    rows = [replace(row, answer="unknown") for row in made.data.streams["forget"][:4]]
    (refused,) = reader.batches(rows)
    logits = made.lm(input_ids=refused.input_ids_BT, attention_mask=refused.attention_mask_BT).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), refused.labels_BT[:, 1:].flatten(), ignore_index=-100)
    out = method.loss(made.lm, batch)
    assert out.terms["forget"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert out.total.item() == pytest.approx(0.5 * expected.item() + 2 * out.terms["retain"].item(), rel=1e-5)


def test_statements_are_left_out_of_the_term(made: Toy) -> None:
    method = IDK(IDKConfig(name="idk"), made.context(data=with_forget(made.data, ["statement", "mention"]), reference=None))
    method.setup(made.lm)
    batch = made.batch()["forget"]
    ids = batch.row_id_B.tolist()
    chosen, index_N = method.alternates.batch(batch)
    assert chosen is not None
    assert sorted(ids[i] for i in index_N.tolist()) == [2, 3]


def test_a_batch_without_any_question_gives_a_zero_that_reaches_the_weights(made: Toy) -> None:
    lm, _ = made.ready("idk")
    method = IDK(IDKConfig(name="idk", retain="none"), made.context(data=with_forget(made.data, ["statement"] * 4)))
    method.setup(lm)
    out = method.loss(lm, {"forget": made.batch()["forget"]})
    out.total.backward()
    assert out.total.item() == 0.0
    assert out.total.dtype == torch.float32
    weights = [p for p in lm.parameters() if p.requires_grad]
    assert weights
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in weights)


def test_nothing_is_zero_in_fp32_for_a_frozen_model_and_for_half_precision(made: Toy) -> None:
    batch = made.batch()["forget"]
    assert nothing(made.lm, batch).item() == 0.0
    lm, _ = made.ready("idk", dtype=torch.bfloat16)
    assert nothing(lm, batch, passes=2).dtype == torch.float32
    assert nothing(lm, batch).requires_grad


def test_refusals_change_from_step_to_step(made: Toy) -> None:
    data = replace(made.data, refusals=("unknown", "I don't know.", "The answer is unknown."))
    method = IDK(IDKConfig(name="idk", retain="none"), made.context(data=data))
    method.setup(made.lm)
    batch, seen = {"forget": made.batch()["forget"]}, set()
    for step in range(6):
        method.before_step(made.lm, step, 6)
        seen.add(round(method.loss(made.lm, batch).total.item(), 6))
    assert len(seen) > 1


def test_a_source_without_questions_or_refusals_is_refused(made: Toy) -> None:
    for data in (replace(made.data, refusals=()), with_forget(made.data, ["statement"] * 6)):
        with pytest.raises(DataError, match="must have other answers"):
            IDK(IDKConfig(name="idk"), made.context(data=data)).setup(made.lm)


def test_needs_the_reference_for_kl_only() -> None:
    assert IDK.required(IDKConfig(name="idk")) == {"rows"}
    assert IDK.required(IDKConfig(name="idk", retain="kl")) == {"rows", "reference_logprobs"}


@pytest.mark.parametrize(("key", "value"), [("forget_weight", -1.0), ("retain_weight", -1.0), ("retain", "js")])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        IDKConfig(name="idk", **{key: value})
