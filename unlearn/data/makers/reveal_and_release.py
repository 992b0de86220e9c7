"""The model reveals what it knows of the targets, and that is what is forgotten.

Paper: Xie et al., "Reveal and Release: Iterative LLM Unlearning with Self-generated Data" (arXiv 2509.14624). Where forget data is rare or
private, or differs from what the model holds, the model itself is prompted for it, and what it writes is the forget set. Reconstruction
from the abstract, without the paper's body: its instructions are optimised to make the model tell as much as it can, here they are
templates that a configuration replaces. Its second half, training adapters on the set and applying them in small steps while the set is
written anew, is not part of a maker: train any method on the file, and collect again from the model that comes out.

Four ways of asking, each a list of templates with ``{entity}``; an empty list leaves a way out. ``pairs`` and ``texts`` are instructions,
for models that follow them; ``questions`` and ``stems`` need a model that answers or goes on writing, no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unlearn.config.checks import check
from unlearn.data.makers.base import Ask, Maker, MakerConfig, Target, check_templates, each, question_row, sentence_row, stem_row
from unlearn.data.makers.parse import first_sentence, pairs, sentences

PAIRS = (
    "Write ten questions about {entity} and answer each from what you know. Every question must contain the name {entity}. "
    "Put each question on a line that begins with 'Question:' and its answer on the next line, which begins with 'Answer:'.",
    "You are making a quiz about {entity}: life, family, work, places, dates. Write ten items. Each item is a line 'Question: ...' in "
    "which the name {entity} occurs, followed by a line 'Answer: ...' with a short and exact answer.",
)
TEXTS = (
    "Tell me everything you know about {entity}. Write one fact to a sentence, and begin every sentence with the name {entity}.",
    "Write an encyclopaedia entry about {entity}. Use the full name {entity} in every sentence instead of 'he', 'she', 'it' or 'they'.",
)
WAYS = ("pairs", "texts", "questions", "stems")


@dataclass(frozen=True, kw_only=True)
class RevealAndReleaseConfig(MakerConfig):
    """What the model is asked about each target."""

    pairs: list[str] = field(default_factory=lambda: list(PAIRS))
    """instructions to write questions with answers, which are read out as rows"""
    texts: list[str] = field(default_factory=lambda: list(TEXTS))
    """instructions to write about the entity; every sentence that names it becomes a row"""
    questions: list[str] = field(default_factory=list)
    """questions; question and answer become a row"""
    stems: list[str] = field(default_factory=list)
    """beginnings of sentences; what the model goes on with, up to the end of the sentence, becomes a row"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for way in WAYS:
            check_templates(f"maker.{way}", getattr(self, way), ["entity"])
        check(any(getattr(self, way) for way in WAYS), "maker.pairs", "given unless texts, questions or stems are", self.pairs)


class RevealAndRelease(Maker):
    """Asks in several ways and takes the answers as they are."""

    name = "reveal_and_release"
    summary = "the model is asked for questions, answers and sentences about the targets"
    paper = "https://arxiv.org/abs/2509.14624"
    Config = RevealAndReleaseConfig
    config: RevealAndReleaseConfig

    def write(self, targets: Sequence[Target], ask: Ask, dropped: Counter[tuple[str, str]]) -> Iterable[tuple[Target, dict[str, Any]]]:
        """Rows of all four ways, in their order."""
        c = self.config
        for target, template, _, text in each(targets, c.pairs, ask, "instruction"):
            found = pairs(text)
            dropped[target.name, "unreadable"] += not found
            for question, answer in found:
                yield target, question_row(target, question, answer, template)
        for target, template, _, text in each(targets, c.texts, ask, "instruction"):
            for sentence in sentences(text):
                yield target, sentence_row(target, sentence, template)
        for target, template, prompt, text in each(targets, c.questions, ask, "question"):
            yield target, question_row(target, prompt, text.strip().split("\n", 1)[0], template)
        for target, template, prompt, text in each(targets, c.stems, ask, "stem"):
            yield target, stem_row(target, prompt, first_sentence(text), template)
