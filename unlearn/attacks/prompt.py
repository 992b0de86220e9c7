"""Prompting: the same facts asked in every other way that needs nothing but a text box.

The forms are those of RWKU's adversarial probes (Jin et al., arXiv 2406.10890; its cross-lingual probes are left out:
they need translated questions) with misspelt names and questions that reach the entity through another of its facts. A row counts in
a form when any wording of the form gets its answer, the worst case over paraphrases of JensUn (arXiv 2509.02820); in multiple choice, where
guessing is often right, with the share of the wordings in which the right option is chosen. The headline is each side's best form.

Nothing that is asked for is given away ("minimal information injection", arXiv 2506.00688): examples are about entities that are not
forgotten and have other answers, background texts hold neither name nor answer, and wordings that hold the answer ask for the name. The
exception is multiple choice, whose options hold it by nature, on both sides.

The wordings are reconstructions: data in ``unlearn.attacks.wordings``, where the fields are listed, in English. A source with a language of
its own replaces them by form (``Source.prompts``); ``form/attribute`` adds wordings for one attribute. The reply counts up to its first
line break, and must name the answer as whole words: free text seldom starts with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unlearn.attacks.base import Attack, AttackConfig, AttackContext, Outcome, outcome
from unlearn.attacks.phrasing import Phrasing, Prompt
from unlearn.attacks.wordings import WORDINGS
from unlearn.config.checks import check, one_of
from unlearn.data.tokenize import TokenRow
from unlearn.errors import DataError
from unlearn.evaluation.answers import answer
from unlearn.functional.aliases import matches_alias
from unlearn.functional.text import is_answer
from unlearn.models.decoder import text_config
from unlearn.types import PromptFormat, Row

Array = np.ndarray[Any, np.dtype[Any]]

_LETTER = re.compile(r"\W*([A-Z])(?:[.):,]|\s*$)")

WORDY = 8
"""Most tokens of a reply, beyond twice the length of the longest right answer: some may come before it."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig(AttackConfig):
    """Prompting: which forms, how many wordings of each."""

    forms: list[str] = field(default_factory=list)
    """forms of wordings to use, such as paraphrase or in_context; empty uses all that the source's language has"""
    wordings: int = 8
    """most wordings of a form, >= 1"""
    variants: int = 3
    """other forms, and misspellings, of a name, >= 1"""
    examples: int = 3
    """answered questions before one that is asked in context, >= 1"""
    options: int = 6
    """most values to choose from, in [2, 26]; fewer where the source has fewer"""

    def __post_init__(self) -> None:
        check(all(self.forms), "attack.prompt.forms", "names of forms", self.forms)
        for name in ("wordings", "variants", "examples"):
            check(getattr(self, name) >= 1, f"attack.prompt.{name}", ">= 1", getattr(self, name))
        check(2 <= self.options <= 26, "attack.prompt.options", "in [2, 26]", self.options)


class PromptAttack(Attack):
    """Paraphrases, injections, beginnings, roles, choices, reversals, examples, hints, other names, two hops."""

    name = "prompt"
    summary = "asks in other words, forms and roles: RWKU's black-box probes, misspelt names, two-hop questions"
    paper = "https://arxiv.org/abs/2406.10890"
    quick = {"wordings": 2, "variants": 1}
    Config = PromptConfig

    def run(self, context: AttackContext) -> Outcome:
        """One generation pass over all prompts of a form and side."""
        sides = {"target": context.target, "control": context.control}
        forms = self.forms(context)
        fmt = context.reader.prompt_format
        phrasings = {name: Phrasing(context.data, facts, fmt, self.config, context.seed) for name, facts in sides.items()}
        cells: list[str] = []
        hits: dict[str, list[Array]] = {name: [] for name in sides}
        for done, (form, wordings) in enumerate(forms.items()):
            context.tick(done / len(forms))
            found = {name: self._form(context, phrasing, wordings) for name, phrasing in phrasings.items()}
            if all(np.isnan(values).all() for values in found.values()):
                continue
            cells.append(form)
            for name, values in found.items():
                hits[name].append(values)
        if not cells:
            raise DataError(f"The rows must fit a wording of one of the forms {', '.join(forms)}; none does.")
        return outcome(context, cells, hits["target"], hits["control"])

    def forms(self, context: AttackContext) -> dict[str, dict[str, tuple[str, ...]]]:
        """Wordings of every form that is used, by the attribute they are for ("" for all).

        Raises:
            ConfigError: a form that is asked for does not exist.
        """
        table: dict[str, dict[str, tuple[str, ...]]] = {}
        for key, wordings in {**WORDINGS, **context.prompts}.items():
            form, _, attribute = key.partition("/")
            if wordings:
                table.setdefault(form, {})[attribute] = tuple(wordings)
        for form in self.config.forms:
            one_of(form, list(table), "attack.prompt.forms")
        return {form: found for form, found in table.items() if not self.config.forms or form in self.config.forms}

    def _form(self, context: AttackContext, phrasing: Phrasing, wordings: Mapping[str, Sequence[str]]) -> Array:
        """How much of each row of one side a form gets out, shape [N]; nan where no wording fits the row."""
        rows = phrasing.facts.test
        fit = [(*wordings.get("", ()), *(wordings.get(row.attribute, ()) if row.attribute else ())) for row in rows]
        prompts = [p for i, found in enumerate(fit) for wording in found[: self.config.wordings] for p in phrasing.prompts(wording, i)]
        right: list[list[bool]] = [[] for _ in rows]
        for prompt, reply in _replies(context, prompts):
            right[prompt.place].append(judge(reply, prompt))
        choice = any(prompt.options for prompt in prompts)
        reduce = np.mean if choice else np.max
        return np.array([float(reduce(found)) if found else np.nan for found in right])


def judge(reply: str, prompt: Prompt) -> bool:
    """Whether a reply gives what the prompt asks for.

    Where there are options, the one that the reply begins with, by its letter or its text, must be the right one.
    """
    if not prompt.options:
        return matches_alias(reply, prompt.accepted, "contains")
    letter = _LETTER.match(reply)
    by_letter = [option for name, option in prompt.options if letter and letter[1] == name]
    by_text = sorted((option for _, option in prompt.options if is_answer(reply, option)), key=len, reverse=True)
    return (by_letter + by_text)[:1] == [prompt.accepted[0]]


def _replies(context: AttackContext, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, str]]:
    """First line of the reply to each prompt; prompts that do not fit into the model's context are passed over."""
    reader = context.reader
    tokens = tokenised(prompts, context)
    longest = max((len(row.ids) - row.answer_start for row in tokens), default=1)
    limit = min(reader.max_new_tokens, 2 * longest + WORDY)
    room = int(getattr(text_config(context.lm), "max_position_embeddings", None) or 2**31) - limit
    kept = [(prompt, row) for prompt, row in zip(prompts, tokens, strict=True) if row.answer_start <= room]
    if not kept:
        return
    texts = answer(context.lm, [row for _, row in kept], replace(reader, max_new_tokens=limit))
    for (prompt, _), text in zip(kept, texts, strict=True):
        yield prompt, text.strip().split("\n")[0]


def tokenised(prompts: Sequence[Prompt], context: AttackContext) -> list[TokenRow]:
    """Prompts with what they ask for, as one text each, so that a prompt ends where it would in training."""
    fmt = context.reader.prompt_format
    plain = PromptFormat(question="{question}", separator="", end=fmt.end, append_eos=fmt.append_eos)
    rows = [Row(row_id=i, entity="", prompt=prompt.text, answer=prompt.accepted[0]) for i, prompt in enumerate(prompts)]
    return replace(context.reader, prompt_format=plain, max_length=2**31).tokens(rows)
