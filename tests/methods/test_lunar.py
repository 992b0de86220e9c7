from __future__ import annotations

import copy

import pytest
import torch

from tests.tiny import tiny_gpt2
from tests.toys import LAYER, PEOPLE, Toy, toy
from unlearn.config.schema import ModelConfig
from unlearn.data.swap import matched_rows
from unlearn.errors import ConfigError
from unlearn.methods.lunar import LunarConfig, prompt_mask, redirection
from unlearn.models.decoder import blocks_of
from unlearn.models.trainable import select_trainable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def last(made: Toy, rows) -> torch.Tensor:  # noqa: ANN001
    """Mean original activation at the last prompt token, one row at a time."""
    found = []
    for row in made.reader().tokens(rows):
        states = made.lm(input_ids=torch.tensor([row.ids[: row.answer_start]]), output_hidden_states=True).hidden_states[LAYER + 1]
        found.append(states[0, -1])
    return torch.stack(found).mean(0)


def test_redirection_by_hand() -> None:
    assert redirection(torch.tensor([[0.0, 4.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [3.0, 1.0]])).tolist() == [-1.0, 1.0]


def test_refusal_direction_leads_from_the_targets_questions_to_those_about_unknown_anchors(made: Toy) -> None:
    _, method = made.ready("lunar", coefficient=3.0)
    expected = 3.0 * (last(made, made.data.streams["unknown"]) - last(made, made.data.streams["forget"]))
    torch.testing.assert_close(method.shift_D, expected, rtol=1e-4, atol=1e-4)


def test_unverified_direction_is_that_of_the_targets_own_questions_with_unknown_names(made: Toy) -> None:
    _, method = made.ready("lunar", reference="unverified", coefficient=1.0)
    swapped = matched_rows(made.data.streams["forget"], PEOPLE["unknown"], 1, 0)
    assert {row.template for row in swapped} == {row.template for row in made.data.streams["forget"]}
    expected = last(made, swapped) - last(made, made.data.streams["forget"])
    torch.testing.assert_close(method.shift_D, expected, rtol=1e-4, atol=1e-4)


def test_own_prompts_replace_the_reference_and_gaps_take_unknown_names(made: Toy) -> None:
    method = made.method("lunar", prompts=["Who is {name}?", "What is it?", "Where is {name}?"], n_prompts=4)
    names = PEOPLE["unknown"]
    expected = ["What is it?", f"Who is {names[0]}?", f"Where is {names[0]}?", f"Who is {names[1]}?"]
    assert [row.prompt for row in method.reference_rows()] == expected
    assert [row.prompt for row in made.method("lunar", prompts=["What is it?"]).reference_rows()] == ["What is it?"]
    lm, method = made.ready("lunar", prompts=["What is it?"])
    assert torch.isfinite(method.loss(lm, made.batch()).total)


def test_n_prompts_spreads_over_what_there_is(made: Toy) -> None:
    rows = made.method("lunar", n_prompts=6).reference_rows()
    assert [row.entity for row in rows] == PEOPLE["unknown"]


def test_prompt_mask_by_hand(made: Toy) -> None:
    batch = made.batch()["forget"]
    for row, start in enumerate(batch.answer_start_B.tolist()):
        assert prompt_mask(batch, "prompt")[row].nonzero()[:, 0].tolist() == list(range(1, start))
        assert prompt_mask(batch, "last")[row].nonzero()[:, 0].tolist() == [start - 1]
        assert prompt_mask(batch, "all")[row].nonzero()[:, 0].tolist() == list(range(1, int(batch.attention_mask_BT[row].sum())))


def test_at_the_start_the_loss_is_the_squared_shift_and_at_the_target_it_is_zero(made: Toy) -> None:
    lm, method = made.ready("lunar")
    terms = method.loss(lm, made.batch()).terms
    assert terms["forget"].item() == pytest.approx(method.shift_D.square().mean().item(), rel=1e-4)
    assert terms["retain"].item() == pytest.approx(0.0, abs=1e-9)
    handle = blocks_of(lm)[LAYER].register_forward_hook(lambda module, args, output: output + method.shift_D)
    try:
        moved = method.loss(lm, made.batch()).terms
    finally:
        handle.remove()
    assert moved["forget"].item() == pytest.approx(0.0, abs=1e-8)
    assert moved["retain"].item() == pytest.approx(method.shift_D.square().mean().item(), rel=1e-4)


def test_the_loss_is_the_regression_of_the_matrix_on_its_inputs(made: Toy) -> None:
    lm, method = made.ready("lunar", retain_weight=0.0)
    batch = made.batch()
    seen = []
    matrix = blocks_of(lm)[LAYER].mlp.down_proj
    handle = matrix.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    method.loss(lm, {s: batch[s] for s in ("forget", "retain")})
    handle.remove()
    x = seen[0][prompt_mask(batch["forget"], "prompt")]
    target = x @ matrix.weight.detach().T + method.shift_D
    with torch.no_grad():
        matrix.weight.mul_(0.7)
    expected = (x @ matrix.weight.T - target).square().mean()
    assert method.loss(lm, batch).total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_trains_one_matrix_and_reaches_the_target_with_it(made: Toy) -> None:
    lm, method = made.ready("lunar", tokens="last")
    names = [name for name, p in lm.named_parameters() if p.requires_grad]
    assert names == [f"model.layers.{LAYER}.mlp.down_proj.weight"]
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    batch = made.batch()
    first = method.loss(lm, batch).total.item()
    for _ in range(60):
        optimizer.zero_grad()
        method.loss(lm, batch).total.backward()
        optimizer.step()
    assert method.loss(lm, batch).total.item() < 0.1 * first
    _, report = select_trainable(tiny_gpt2(), ModelConfig(trainable=method.trainable(4)), LAYER)
    assert report.names == (f"transformer.h.{LAYER}.mlp.c_proj.weight",)


def test_the_direction_is_measured_on_the_model_that_is_given_and_kept(made: Toy) -> None:
    lm, method = made.ready("lunar")
    again = copy.deepcopy(method)
    again.setup(lm)
    assert torch.equal(again.shift_D, method.shift_D)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer", -2),
        ("reference", "refused"),
        ("prompts", ["Who?", " "]),
        ("n_prompts", 0),
        ("coefficient", 0.0),
        ("coefficient", float("nan")),
        ("retain_weight", -1.0),
        ("tokens", "answers"),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        LunarConfig(name="lunar", **{key: value})
