from __future__ import annotations

import copy
import doctest
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.errors import ConfigError, DataError
from unlearn.methods import altpo
from unlearn.methods.altpo import AltPO, AltPOConfig
from unlearn.methods.dpo import DPO, DPOConfig
from unlearn.types import EntityData


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def built(made: Toy, data: EntityData | None = None, **config: Any) -> AltPO:
    return AltPO(AltPOConfig(name="altpo", **config), made.context(data=data or made.data))


def without_given(made: Toy, *, keep: int = 0) -> EntityData:
    forget = made.data.streams["forget"]
    bare = [row if i < keep else replace(row, perturbed_answers=()) for i, row in enumerate(forget)]
    return replace(made.data, streams={**made.data.streams, "forget": tuple(bare)})


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(altpo)
    assert result.attempted >= 1
    assert result.failed == 0


def test_given_alternatives_are_those_of_the_rows_and_statements_have_none(made: Toy) -> None:
    forget = list(made.data.streams["forget"])
    forget[0] = replace(forget[0], kind="statement")
    data = replace(made.data, streams={**made.data.streams, "forget": tuple(forget)})
    assert built(made, data, number=1, tries=1).answers(made.lm, forget)[1] == forget[1].perturbed_answers[:1]
    found = built(made, data).answers(made.lm, forget)
    assert found == {row.row_id: row.perturbed_answers for row in forget[1:]}


def test_with_refusals_for_alternatives_it_is_dpo(made: Toy) -> None:
    forget = tuple(replace(row, perturbed_answers=made.data.refusals) for row in made.data.streams["forget"])
    data = replace(made.data, streams={**made.data.streams, "forget": forget})
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(changed.parameters()).add_(0.05)
    methods = [built(made, data, beta=0.3), DPO(DPOConfig(name="dpo", beta=0.3), made.context())]
    losses = []
    for method in methods:
        method.setup(made.lm)
        losses.append(method.loss(changed, made.batch()).total.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(methods[0].loss(made.lm, made.batch()).total.item(), rel=1e-3)


def scripted(monkeypatch: pytest.MonkeyPatch, made: Toy, texts: list[list[str]]) -> list[list[str]]:
    """Let the model reply with these texts, one list per draw and one text for every row asked; returns the prompts it gets."""
    asked: list[list[str]] = []

    def reply(lm: Any, tokenizer: Any, prompts: list[tuple[int, ...]], limit: int, **options: Any) -> list[list[int]]:
        asked.append([tokenizer.decode(p) for p in prompts])
        assert options["temperature"] == 1.0
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts[len(asked) - 1][: len(prompts)]]

    monkeypatch.setattr(altpo, "generate", reply)
    return asked


def test_a_reply_with_the_right_answer_is_refused_and_drawn_again(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made.data.streams["forget"][:2]
    right = [f"It is {row.answer}." for row in rows]
    asked = scripted(monkeypatch, made, [right, [" ", "Rome"], ["Berlin"]])
    found = built(made, alternatives="generated", number=1, tries=3).answers(made.lm, rows)
    assert found == {rows[0].row_id: ["Berlin"], rows[1].row_id: ["Rome"]}
    assert [len(prompts) for prompts in asked] == [2, 2, 1]
    assert rows[0].prompt in asked[0][0]
    assert f"Answer: {rows[0].answer}" in asked[0][0]
    assert asked[0][0].rstrip().endswith("Answer:")


def test_different_replies_are_collected_up_to_the_number(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made.data.streams["forget"][:1]
    asked = scripted(monkeypatch, made, [["Rome"], ["Rome"], ["Berlin"], ["Oslo"]])
    found = built(made, alternatives="generated", number=2, tries=4).answers(made.lm, rows)
    assert found == {rows[0].row_id: ["Rome", "Berlin"]}
    assert len([prompts for prompts in asked if prompts]) == 3


def test_a_row_without_a_usable_reply_falls_back_to_its_given_ones_or_is_left_out(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    data = without_given(made, keep=1)
    rows = data.streams["forget"][:3]
    too_long = "Rome and " * 200
    scripted(monkeypatch, made, [[rows[0].answer, too_long, "Rome"]] * 2)
    found = built(made, data, alternatives="generated", number=1, tries=1).answers(made.lm, rows)
    assert found == {rows[0].row_id: rows[0].perturbed_answers[:1], rows[2].row_id: ["Rome"]}


def test_no_alternative_at_all_is_an_error(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="method.alternatives: given needs"):
        built(made, without_given(made)).setup(made.lm)
    scripted(monkeypatch, made, [["", *[""] * 9]] * 2)
    with pytest.raises(DataError, match="must have other answers"):
        built(made, without_given(made), alternatives="generated", number=1, tries=2).setup(made.lm)


def test_the_model_writes_them_the_same_way_twice_and_another_way_for_another_seed(made: Toy) -> None:
    def written(seed: int) -> dict[int, tuple[str, ...]]:
        config = AltPOConfig(name="altpo", alternatives="generated", number=2, tries=3, template="{question} not {answer}")
        method = AltPO(config, made.context(seed=seed, data=without_given(made)))
        return {i: tuple(texts) for i, texts in method.answers(made.lm, made.data.streams["forget"]).items()}

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = written(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == written(0)
    assert first != written(1)
    assert all(1 <= len(texts) <= 2 for texts in first.values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alternatives", "written"),
        ("template", "no place for a {question}"),
        ("number", 0),
        ("tries", 4),
        ("temperature", 0.0),
        ("beta", 0.0),
        ("retain", "js"),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        AltPOConfig(name="altpo", **{key: value})
