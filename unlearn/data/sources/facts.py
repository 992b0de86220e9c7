"""Sources of questions about attributes of real entities, some of which a model knows and some of which it does not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unlearn.config.checks import check
from unlearn.data.anchors import rng_for
from unlearn.data.labels import Fact, LabelFile
from unlearn.data.sources.benchmark import PART, Benchmark, BenchmarkConfig, Parts, asked, named
from unlearn.errors import DataError, did_you_mean
from unlearn.types import EntityData, Row


@dataclass(frozen=True, kw_only=True)
class FactsConfig(BenchmarkConfig):
    """Fields of sources of real entities."""

    forget: list[str] = field(default_factory=list)
    """names to forget; empty draws forget_entities of the known ones"""
    forget_entities: int = 20
    """entities to forget where forget names none, >= 1"""
    max_entities: int = 500
    """known entities used in all, drawn at random, >= 3"""
    labels: str | None = None
    """file that says which entities the model knows (`unlearn label` writes it)"""
    wrong_answers: int = 3
    """other entities' answers to compare with, for each question, >= 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.forget_entities >= 1, "data.forget_entities", ">= 1", self.forget_entities)
        check(self.max_entities >= 3, "data.max_entities", ">= 3", self.max_entities)
        check(self.wrong_answers >= 0, "data.wrong_answers", ">= 0", self.wrong_answers)


class Facts(Benchmark):
    """A source whose rows are facts: every one has a question, a second wording of it, and all answers that are accepted.

    Known and unknown entities are told apart by the labels file, else by ``known`` and ``unknown`` of the source, else all are taken to be
    known and unknown ones are invented. The second wordings are asked in ``forget_paraphrased`` and in the latent sets only.
    """

    config: FactsConfig

    @abstractmethod
    def facts(self) -> list[Fact]:
        """Every usable fact, in the order of the files."""

    def known(self, fact: Fact) -> bool:
        """Whether a model may be taken to know the entity, where no labels say so."""
        return True

    def unknown(self, fact: Fact) -> bool:
        """Whether a model may be taken not to know it, where no labels say so."""
        return False

    def kinds(self, facts: Sequence[Fact]) -> tuple[list[str], set[str]]:
        """Known entities, in order, and unknown ones.

        Raises:
            DataError: the labels file cannot be used, or labels none of the entities.
        """
        names = list(dict.fromkeys(fact.entity for fact in facts))
        if self.config.labels is None:
            sure = {fact.entity: fact for fact in facts}
            return [name for name in names if self.known(sure[name])], {name for name in names if self.unknown(sure[name])}
        path = Path(self.config.labels).expanduser()
        labels = LabelFile.read(path)
        label = {name: labels.label(name) for name in names}
        if "known" not in label.values():
            raise DataError(f"data.labels must label entities of the source as known; {path} labels none of its {len(names)}.")
        return [name for name in names if label[name] == "known"], {name for name in names if label[name] == "unknown"}

    def targets(self, names: Sequence[str], known: Sequence[str]) -> set[str]:
        """Entities to forget.

        Raises:
            DataError: one is not there, or too few are left to keep.
        """
        c = self.config
        for name in c.forget:
            if name not in names:
                raise DataError(f"data.forget must name entities of {self.title}; found {name!r}.{did_you_mean(name, names)}")
        drawn = c.forget or [known[i] for i in rng_for(self.seed, "forget").permutation(len(known))[: c.forget_entities]]
        left = len(set(known) - set(drawn))
        if left < 2:
            raise DataError(f"data.forget_entities must leave two known entities to keep; found {len(drawn)} of {len(known)}.")
        return set(drawn)

    def rows(self, facts: Sequence[Fact], wanted: set[str]) -> tuple[list[Row], dict[int, str]]:
        """A row of each fact about one of ``wanted``, and its second wording by row id, which is the place of the fact."""
        values: dict[str, dict[str, None]] = {}
        for fact in facts:
            values.setdefault(fact.attribute, {})[fact.answers[0]] = None
        listed = {attribute: sorted(found) for attribute, found in values.items()}
        rows = [self._row(i, fact, listed[fact.attribute]) for i, fact in enumerate(facts) if fact.entity in wanted]
        return rows, {i: fact.reworded for i, fact in enumerate(facts) if fact.reworded}

    def _row(self, row_id: int, fact: Fact, values: Sequence[str]) -> Row:
        rng = rng_for(self.seed, f"wrong {row_id}")
        right = {answer.casefold() for answer in fact.answers}
        drawn = (values[int(i)] for i in rng.permutation(len(values))[: self.config.wrong_answers + len(right)])
        row = Row(
            row_id=row_id,
            entity=fact.entity,
            prompt=fact.question,
            answer=fact.answers[0],
            attribute=fact.attribute,
            template=fact.attribute,
            perturbed_answers=tuple(value for value in drawn if value.casefold() not in right)[: self.config.wrong_answers],
            accepted_answers=fact.answers[1:],
        )
        return named(row, (fact.entity,))

    def load(self) -> EntityData:
        """Read the facts and divide them."""
        facts = self.facts()
        known, unknown = self.kinds(facts)
        targets = self.targets(list(dict.fromkeys(fact.entity for fact in facts)), known)
        rest = [name for name in known if name not in targets]
        kept = {rest[i] for i in rng_for(self.seed, "entities").permutation(len(rest))[: self.config.max_entities]}
        rows, second = self.rows(facts, targets | kept | unknown)
        reword = reworder(second)
        forget = [row for row in rows if row.entity in targets]
        strangers = [self._refused(row) for row in rows if row.entity in unknown - targets]
        labelled = self.config.labels is not None
        parts = Parts(
            forget=forget,
            retain=[row for row in rows if row.entity in kept],
            strangers=strangers if len({row.entity for row in asked(strangers)}) > 1 else (),
            evaluation={"forget_paraphrased": [made for row in forget if (made := reword(row)) != row]},
            reword=reword,
            notes={
                "forget entities": ", ".join(sorted(targets)),
                "known entities": f"{len(known)}, by {'the labels file' if labelled else self.by_default()}",
                "forget_paraphrased": "the same questions in other words",
            },
        )
        return self.build(parts)

    def by_default(self) -> str:
        """How known entities are told where there is no labels file."""
        return "assumption"

    def _refused(self, row: Row) -> Row:
        refusals = self.config.refusals
        drawn = refusals[int(rng_for(self.seed, f"refusal {row.row_id}").integers(len(refusals)))]
        return replace(row, answer=drawn, perturbed_answers=(), accepted_answers=())


def reworder(second: Mapping[int, str]) -> Callable[[Row], Row]:
    """What puts a row's second wording in the place of its question, under an id of its own."""

    def reword(row: Row) -> Row:
        if row.row_id not in second:
            return row
        return replace(row, row_id=row.row_id + PART, prompt=second[row.row_id], template=f"{row.template} reworded")

    return reword
