"""AltPO: a plausible but wrong answer is preferred to the answer that has to be forgotten.

Paper: Mekala et al., "Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models" (arXiv 2409.13474),
section 3. The loss is DPO's with such answers in the place of refusals (``unlearn.methods.dpo``).

The paper lets the model itself write them, told to change every fact and stay plausible: ``alternatives: generated``. That takes a model
that follows instructions, which the default must not depend on: ``given`` takes the wrong answers that come with the source's questions.
The wording of the instruction and the number of answers per question are ours. A text that holds the right answer is no alternative and
is drawn again; so is one that is empty or too long for ``data.max_length``. Statements and mentions have no alternative and are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from unlearn.config.checks import check, one_of
from unlearn.data.alternates import given, with_answer
from unlearn.data.tokenize import tokenize_rows
from unlearn.errors import DataError
from unlearn.functional.text import normalise_answer
from unlearn.methods.dpo import DPO, DPOConfig
from unlearn.models.forward import generate
from unlearn.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEMPLATE = (
    "Below is a question with its answer.\nQuestion: {question}\nAnswer: {answer}\n"
    "Invent a different answer to this question. Keep the length and the style, but put another, equally believable one in the place of "
    "every name, place, date and other fact. Reply with the new answer and nothing else."
)
"""Instruction that asks a model for an alternative answer."""


@dataclass(frozen=True, kw_only=True)
class AltPOConfig(DPOConfig):
    """Where the alternative answers come from."""

    FREE_TEXT: ClassVar[frozenset[str]] = frozenset({"name", "template"})

    alternatives: str = "given"
    """given (the wrong answers that the source gives) or generated (written by the model itself before training, as in the paper)"""
    template: str = TEMPLATE
    """instruction for generated answers, with {question} and {answer}; it is put in the place of a question"""
    number: int = 5
    """alternative answers kept for each question, >= 1; the original model reads every one before training"""
    tries: int = 10
    """most answers drawn for each question, >= number; a question without a usable one falls back to its given ones"""
    temperature: float = 1.0
    """sampling temperature of generated answers, > 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.alternatives, ("given", "generated"), "method.alternatives")
        whole = "{question}" in self.template and "{answer}" in self.template
        check(whole, "method.template", "a text with {question} and {answer}", self.template)
        check(self.tries >= self.number, "method.tries", f">= method.number = {self.number}", self.tries)
        check(0 < self.temperature < float("inf"), "method.temperature", "finite and > 0", self.temperature)


def tells(text: str, answer: str) -> bool:
    """Whether ``text`` holds ``answer`` as whole words, after ``normalise_answer``.

    >>> tells("It was in Paris, of course.", "paris"), tells("A Parisian", "Paris")
    (True, False)
    """
    return f" {normalise_answer(answer)} " in f" {normalise_answer(text)} "


class AltPO(DPO):
    """Prefers a plausible wrong answer to the answer that has to be forgotten."""

    name = "altpo"
    family = "preference"
    summary = "prefer a plausible wrong answer to the forget answer, relative to the original model"
    paper = "https://arxiv.org/abs/2409.13474"
    streams = ("forget", "retain")
    needs = frozenset({"rows", "reference_logprobs"})
    search = {
        "method.beta": {"low": 0.02, "high": 1.0, "log": True},
        "method.retain": {"choices": ["nll", "kl"]},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = AltPOConfig
    config: AltPOConfig

    def answers(self, lm: PreTrainedModel, rows: Sequence[Row]) -> Mapping[int, Sequence[str]]:
        """Alternative answers by row id; a question for which there is none is left out.

        Raises:
            DataError: there is none for any row.
        """
        from_source: dict[int, Sequence[str]] = {row_id: texts[: self.config.number] for row_id, texts in given(rows).items()}
        if self.config.alternatives == "given":
            if not from_source:
                raise DataError(
                    "method.alternatives: given needs wrong answers with the questions of the source; found none (generated makes them)."
                )
            return from_source
        written = self._written(lm, [row for row in rows if row.kind == "qa"])
        return {**from_source, **{row_id: texts for row_id, texts in written.items() if texts}}

    def _written(self, lm: PreTrainedModel, rows: Sequence[Row]) -> dict[int, list[str]]:
        """Different usable answers written by the model, at most ``number`` for each row."""
        kept: dict[int, list[str]] = {row.row_id: [] for row in rows}
        for attempt in range(self.config.tries):
            lacking = [row for row in rows if len(kept[row.row_id]) < self.config.number]
            for row, text in zip(lacking, self._ask(lm, lacking, attempt), strict=True):
                if text not in kept[row.row_id] and self._usable(row, text):
                    kept[row.row_id].append(text)
        return kept

    def _usable(self, row: Row, text: str) -> bool:
        """Whether a text is an answer, not the right one, and short enough."""
        if not normalise_answer(text) or tells(text, row.answer):
            return False
        reader = self._source()[2]
        made = tokenize_rows([with_answer(row, text)], reader.tokenizer, reader.prompt_format, sys.maxsize)
        return len(made[0].ids) <= reader.max_length

    def _ask(self, lm: PreTrainedModel, rows: Sequence[Row], attempt: int) -> list[str]:
        """One sampled reply to the instruction about each row."""
        if not rows:
            return []
        reader, template = self._source()[2], self.config.template
        asked = [
            replace(row, prompt=template.replace("{question}", row.prompt).replace("{answer}", row.answer), mentions=()) for row in rows
        ]
        made = tokenize_rows(asked, reader.tokenizer, reader.prompt_format, sys.maxsize)
        replies = generate(
            lm,
            reader.tokenizer,
            [row.ids[: row.answer_start] for row in made],
            reader.max_new_tokens,
            stop_ids=reader.stop_ids,
            batch_size=reader.batch_size,
            temperature=self.config.temperature,
            seed=self.context.seed * self.config.tries + attempt,
        )
        return [reader.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in replies]
