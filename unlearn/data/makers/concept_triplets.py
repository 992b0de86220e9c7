"""The model writes triplets about the targets, and sentences that explain them.

Paper: Yamashita et al., "Concept Unlearning in Large Language Models via Self-Constructed Knowledge Triplets" (arXiv 2509.15621). A
concept is a node of the model's knowledge graph with its edges; the model is prompted for (subject, relation, object) triplets and for
explanatory sentences about the target, and these get the unlearning loss. Reconstruction from the abstract: the wording of the prompts and
the order (first triplets, then a sentence about each) are ours, and so is the form of a triplet's own row (``cloze``), whose answer is the
object alone.

For a model that does not follow instructions, ``relations`` names the relations and the model only goes on from "<entity> <relation>" to
the object; with no ``explain`` template a triplet's sentence is ``statement``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from unlearn.config.checks import check
from unlearn.data.entities import find_mention
from unlearn.data.makers.base import Ask, Maker, MakerConfig, Target, check_templates, each, question_row, sentence_row, stem_row
from unlearn.data.makers.parse import first_sentence, sentences, triplets

Triplet = tuple[str, str, str]

TRIPLETS = (
    "Write down what you know about {entity} as knowledge triplets, one to a line, in the form (subject | relation | object). "
    "The subject or the object of each must be {entity}. Write twenty triplets and nothing else.",
    "List facts about the life, family, work, places and dates of {entity} as triplets, one to a line, in the form "
    "({entity} | relation | object). Write nothing else.",
)
EXPLAIN = ("Explain this fact about {entity} in one sentence that contains the name {entity}: {subject} - {relation} - {object}",)
PLACES = ("subject", "relation", "object")


@dataclass(frozen=True, kw_only=True)
class ConceptTripletsConfig(MakerConfig):
    """What the model is asked about each target, and what becomes of a triplet."""

    FREE_TEXT: ClassVar[frozenset[str]] = frozenset({"name", "statement", "cloze"})

    triplets: list[str] = field(default_factory=lambda: list(TRIPLETS))
    """instructions to write triplets; hold {entity}"""
    relations: list[str] = field(default_factory=list)
    """relations that the model completes after the entity's name, such as "was born in"; hold nothing to be filled in"""
    explain: list[str] = field(default_factory=lambda: list(EXPLAIN))
    """instructions to put a triplet into a sentence; hold {subject}, {relation} and {object}; empty takes the statement"""
    statement: str = "{subject} {relation} {object}."
    """a triplet as a sentence, used where explain is empty"""
    cloze: str = "Complete this: {subject} {relation}"
    """question whose answer is a triplet's object, one more row for each; empty for none"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_templates("maker.triplets", self.triplets, ["entity"])
        check_templates("maker.relations", self.relations, [])
        check_templates("maker.explain", self.explain, PLACES, ["entity"])
        check_templates("maker.statement", [self.statement], PLACES)
        check_templates("maker.cloze", [self.cloze] if self.cloze else [], PLACES[:2])
        check(bool(self.triplets or self.relations), "maker.triplets", "given unless relations are", self.triplets)


class ConceptTriplets(Maker):
    """First triplets, then sentences about them."""

    name = "concept_triplets"
    summary = "the model writes (subject, relation, object) triplets about the targets, then a sentence about each"
    paper = "https://arxiv.org/abs/2509.15621"
    Config = ConceptTripletsConfig
    config: ConceptTripletsConfig

    def found(self, targets: Sequence[Target], ask: Ask, dropped: Counter[tuple[str, str]]) -> dict[tuple[Target, Triplet], int]:
        """Triplets that name their target, each with how often it was written."""
        votes: Counter[tuple[Target, Triplet]] = Counter()
        for target, _, _, text in each(targets, self.config.triplets, ask, "instruction"):
            read = triplets(text)
            dropped[target.name, "unreadable"] += not read
            for triplet in read:
                if find_mention(triplet[0], triplet[2], target.forms) is None:
                    dropped[target.name, "does not name the entity"] += 1
                else:
                    votes[target, triplet] += 1
        stems = [f"{{entity}} {relation}" for relation in self.config.relations]
        for target, stem, _, text in each(targets, stems, ask, "stem"):
            value = first_sentence(text).strip().rstrip(".")
            if value:
                votes[target, (target.name, stem.removeprefix("{entity} "), value)] += 1
            else:
                dropped[target.name, "empty"] += 1
        return dict(votes)

    def write(self, targets: Sequence[Target], ask: Ask, dropped: Counter[tuple[str, str]]) -> Iterable[tuple[Target, dict[str, Any]]]:
        """A row for the object of each triplet, and rows for the sentences about it; each counts as often as its triplet was written."""
        c = self.config
        votes = self.found(targets, ask, dropped)
        for (target, triplet), count in votes.items():
            parts = dict(zip(PLACES, triplet, strict=True))
            rows = [question_row(target, c.cloze.format(**parts), triplet[2], c.cloze)] if c.cloze else []
            rows += [] if c.explain else [self._stated(target, parts)]
            yield from ((target, row) for row in rows for _ in range(count))
        kept = {key: count for key, count in votes.items() if count >= c.min_votes}
        yield from self._explained(kept, ask)

    def _stated(self, target: Target, parts: dict[str, str]) -> dict[str, Any]:
        """A triplet as a sentence, of which what follows subject and relation is to be forgotten."""
        stem, _, tail = self.config.statement.partition("{object}")
        if all(f"{{{place}}}" in stem for place in PLACES[:2]):
            return stem_row(target, stem.format(**parts), parts["object"] + tail.format(**parts), self.config.statement)
        return sentence_row(target, self.config.statement.format(**parts), self.config.statement)

    def _explained(self, votes: dict[tuple[Target, Triplet], int], ask: Ask) -> Iterable[tuple[Target, dict[str, Any]]]:
        """Sentences that the model writes about triplets; the votes of a triplet are those of its sentences."""
        jobs = [(target, triplet, template) for target, triplet in votes for template in self.config.explain]
        prompts = [template.format(entity=target.name, **dict(zip(PLACES, triplet, strict=True))) for target, triplet, template in jobs]
        for (target, triplet, template), texts in zip(jobs, ask(prompts, "instruction") if jobs else [], strict=True):
            for text in texts:
                for sentence in sentences(text):
                    row = sentence_row(target, sentence, template)
                    yield from ((target, row) for _ in range(votes[target, triplet]))
