from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import pytest

from tests.toys import Toy, toy
from unlearn.methods import self_replay
from unlearn.methods.self_replay import LEAST_NEW, ROUND, listed_names, openings, replay_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), taught=True)


def test_doctests() -> None:
    assert doctest.testmod(self_replay).failed == 0


def test_openings_end_before_the_name(made: Toy) -> None:
    found = openings(made.data.streams["forget"], made.reader())
    assert found == {
        "Question: Where was": ("born?",),
        "Question: What is the job of": ("?",),
        "Question: Which language does": ("speak?",),
    }
    first = dataclasses.replace(made.data.streams["forget"][0], prompt="Ann Lee was born where?", row_id=900)
    plain = dataclasses.replace(made.reader().prompt_format, question="{question}")
    assert openings([first], dataclasses.replace(made.reader(), prompt_format=plain)) == {}


def scripted(monkeypatch: pytest.MonkeyPatch, made: Toy, answers: dict[str, str]) -> list[int]:
    """A model that goes on as ``answers`` say, by the end of the prompt; gives the sizes of what it was asked."""
    asked: list[int] = []

    def generate(lm: Any, tokenizer: Any, prompts: list[list[int]], room: int, **how: Any) -> list[list[int]]:
        asked.append(len(prompts))
        texts = [tokenizer.decode(prompt, skip_special_tokens=True).rstrip() for prompt in prompts]
        said = [next((v for k, v in answers.items() if text.endswith(k)), "") for text in texts]
        return [tokenizer(text, add_special_tokens=False)["input_ids"][:room] for text in said]

    monkeypatch.setattr(self_replay, "generate", generate)
    return asked


def test_names_are_what_stands_before_the_rest_of_the_question(monkeypatch: pytest.MonkeyPatch, made: Toy) -> None:
    said = {"Where was": " Max Wren born?", "job of": " Ann Lee?\nAnswer", "language does": " he never say so"}
    asked = scripted(monkeypatch, made, said)
    names = listed_names(made.lm, made.data.streams["forget"], made.reader(), {"Ann Lee", "Gus Pell"}, rounds=5, seed=0)
    assert names == ("Max Wren",)
    assert asked == [ROUND]  # one new name is fewer than the least share of a round
    assert LEAST_NEW * ROUND > 1


def test_a_name_is_kept_if_the_model_answers_about_it(monkeypatch: pytest.MonkeyPatch, made: Toy) -> None:
    answers = {"was Max Wren born?\nAnswer:": " London", "job of Max Wren?\nAnswer:": " painter", "Max Wren speak?\nAnswer:": " English"}
    scripted(monkeypatch, made, {**answers, "Ned York born?\nAnswer:": " unknown"})
    kept = replay_rows(made.lm, ["Max Wren", "Ned York"], made.data.streams["forget"], made.reader())
    texts = [made.tokenizer.decode(row.ids, skip_special_tokens=True) for row in kept]
    assert len(kept) == 3
    assert all("Max Wren" in text for text in texts)
    assert {made.tokenizer.decode(row.ids[row.answer_start :], skip_special_tokens=True).strip() for row in kept} == {
        "London",
        "painter",
        "English",
    }
    assert [row.row_id for row in kept] == [-1, -2, -3]


def test_who_lists_nobody_replays_nobody(made: Toy) -> None:
    forget = made.data.streams["forget"]
    names = listed_names(made.lm, forget, made.reader(), set(), rounds=1, seed=0)
    assert names == listed_names(made.lm, forget, made.reader(), set(), rounds=1, seed=0)
    assert replay_rows(made.lm, [], forget, made.reader()) == []
