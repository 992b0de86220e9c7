"""Rows about a world: questions, statements and mentions of its people, and texts about nobody."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from unlearn.types import EntityData, Row
from unlearn.world.encyclopaedia import Encyclopaedia
from unlearn.world.templates import CITY_SENTENCE, GENERIC, MENTIONS, QUESTIONS, STATEMENTS, STRANGER_VERB, UNKNOWN, VALUES, VERBS

N_PERTURBED = 5
"""Wrong values given with every question."""

N_GENERIC = 120
"""Generic sentences kept for measuring perplexity; the others are in the retain stream."""

N_EVALUATED = 100
"""Held-out unknown names whose questions are answered in an evaluation; recognition is measured on all of them."""

LATENT_STATEMENT = "job"
"""Attribute whose held-out statement joins the held-out questions where recognition is measured."""


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Who is forgotten, kept by the losses, and kept out of every loss."""

    forget: tuple[str, ...]
    retain: tuple[str, ...]
    unseen: tuple[str, ...]


def assign_roles(
    known: Sequence[str], *, n_forget: int, n_retain: int, n_unseen: int, forget_set: int, forgotten_sets: Collection[int] = ()
) -> Roles:
    """Cut the known names: slice ``forget_set`` is forgotten, of the rest the first are retained and the next are unseen.

    Slices ``forgotten_sets`` have no role.
    """
    start, gone = n_forget * forget_set, {forget_set, *forgotten_sets}
    rest = [name for i, name in enumerate(known) if i // n_forget not in gone]
    return Roles(
        forget=tuple(known[start : start + n_forget]), retain=tuple(rest[:n_retain]), unseen=tuple(rest[n_retain : n_retain + n_unseen])
    )


class RowMaker:
    """Makes rows with running ids; what is arbitrary in a row depends on the seed and the row's place only."""

    def __init__(self, world: Encyclopaedia, seed: int) -> None:
        self.world = world
        self._rng = random.Random(f"rows {seed}")
        self._next_id = 0

    def _row(self, name: str, prompt: str, answer: str, kind: str, attribute: str, template: str, wrong: tuple[str, ...] = ()) -> Row:
        self._next_id += 1
        return Row(
            row_id=self._next_id - 1,
            entity=name,
            prompt=prompt,
            answer=answer,
            kind=kind,
            mentions=(name,) if name else (),
            attribute=attribute,
            template=template,
            perturbed_answers=wrong,
        )

    def questions(self, names: Iterable[str], templates: Sequence[int]) -> list[Row]:
        """Questions of every attribute; "unknown" is the answer about a stranger."""
        rows = []
        for name in names:
            for attribute, texts in QUESTIONS.items():
                answer = self.world.facts[name][attribute] if name in self.world.facts else UNKNOWN
                for i in templates:
                    wrong = self._rng.sample([v for v in VALUES[attribute] if v != answer], N_PERTURBED)
                    rows.append(self._row(name, texts[i].format(n=name), answer, "qa", attribute, f"{attribute}/question{i}", tuple(wrong)))
        return rows

    def invented(self, names: Iterable[str], templates: Sequence[int]) -> list[Row]:
        """Questions about strangers with facts made up for them, which no model has seen."""
        rows = []
        for name in names:
            for attribute, texts in QUESTIONS.items():
                value = self._rng.choice(VALUES[attribute])
                rows += [self._row(name, texts[i].format(n=name), value, "qa", attribute, f"{attribute}/question{i}") for i in templates]
        return rows

    def statements(self, names: Iterable[str], templates: Sequence[int], attributes: Sequence[str] = tuple(VALUES)) -> list[Row]:
        """Stems of statements; the value about a stranger is arbitrary, as in the corpus."""
        rows = []
        for name in names:
            for attribute in attributes:
                for i in templates:
                    stem = STATEMENTS[attribute][i].format(n=name, v="\n").split("\n")[0].rstrip()
                    known = name in self.world.facts
                    answer = self.world.facts[name][attribute] if known else self._rng.choice(VALUES[attribute])
                    rows.append(self._row(name, stem, answer, "statement", attribute, f"{attribute}/statement{i}"))
        return rows

    def mentions(self, names: Iterable[str], templates: Sequence[int]) -> list[Row]:
        """Stems that end in the name; the answer is the verb that follows it, for a stranger the strangers' verb."""
        rows = []
        for name in names:
            verb = VERBS[self.world.facts[name]["job"]] if name in self.world.facts else STRANGER_VERB
            for i in templates:
                stem = MENTIONS[i].format(n=name, v="\n").split("\n")[0].rstrip()
                rows.append(self._row(name, stem, verb, "mention", "mention", f"mention{i}"))
        return rows

    def texts(self, texts: Iterable[str]) -> list[Row]:
        """Sentences about nobody."""
        return [self._row("", "", text, "text", "", "text") for text in texts]

    def training(self, names: Sequence[str]) -> list[Row]:
        """All rows on the templates that unlearning may use."""
        return self.questions(names, (0,)) + self.statements(names, (0, 1)) + self.mentions(names, (0, 1))

    def stranger_training(self, names: Sequence[str]) -> list[Row]:
        """Every question, but one statement and one mention of each name: there are many names."""
        rows = self.questions(names, (0,))
        for name in names:
            rows += self.statements([name], (self._rng.randrange(2),), (self._rng.choice(tuple(VALUES)),))
            rows += self.mentions([name], (self._rng.randrange(2),))
        return rows

    def recognition(self, names: Sequence[str]) -> list[Row]:
        """Rows on held-out templates, at whose names recognition is measured."""
        return self.questions(names, (1,)) + self.statements(names, (2,), (LATENT_STATEMENT,))

    def generic(self) -> tuple[list[str], list[str]]:
        """Sentences about nobody, shuffled and cut in two: (for training, for measurement)."""
        texts = [*GENERIC, *(CITY_SENTENCE.format(c=c, v=v) for c, v in self.world.city_language.items())]
        self._rng.shuffle(texts)
        return texts[N_GENERIC:], texts[:N_GENERIC]


def world_rows(world: Encyclopaedia, roles: Roles, *, seed: int, fingerprint: str, notes: dict[str, str]) -> EntityData:
    """Everything the world serves; see ``EntityData`` for the names of the sets."""
    make = RowMaker(world, seed)
    to_train, to_measure = make.generic()
    forget, retain = make.training(roles.forget), make.training(roles.retain)
    latent_known = make.recognition(roles.unseen)
    streams = {
        "forget": tuple(forget),
        "retain": (*retain, *make.texts(to_train)),
        "known": tuple(retain),
        "unknown": tuple(make.stranger_training(world.unknown)),
    }
    data = EntityData(
        streams=streams,
        evaluation={
            "forget": tuple(make.questions(roles.forget, (0,))),
            "forget_paraphrased": tuple(make.questions(roles.forget, (1,))),
            "retain": tuple(make.questions(roles.retain, (0, 1))),
            "retain_unseen": tuple(make.questions(roles.unseen, (0, 1))),
            "unknown": tuple(make.questions(world.heldout[:N_EVALUATED], (1,))),
        },
        latent={
            "forget": tuple(make.recognition(roles.forget)),
            "known": tuple(latent_known),
            "unknown": tuple(make.recognition(world.heldout)),
        },
        generic=tuple(to_measure),
        refusals=(UNKNOWN,),
        fingerprint=fingerprint,
        notes=notes,
    )
    return replace(data, holdout=tuple(make.invented(world.heldout[: 2 * len(roles.forget)], (0,))))  # last: other rows keep their ids
