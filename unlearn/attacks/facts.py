"""The rows of an attack: facts of the target in two wordings, and the same sentences about people who have no facts."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unlearn.data.splits import fact_keys, fact_splits
from unlearn.data.swap import matched_rows
from unlearn.errors import DataError
from unlearn.functional.text import normalise_answer
from unlearn.types import EntityData, Row

N_OPTIONS = 5
"""Most wrong values given with a made-up one."""


@dataclass(frozen=True)
class Facts:
    """Questions about some entities: ``train`` in the wording that unlearning saw, ``test`` in held-out wording where there is one.

    ``statements`` say the same facts in sentences.
    """

    train: tuple[Row, ...]
    test: tuple[Row, ...]
    statements: tuple[Row, ...] = ()

    @property
    def entities(self) -> tuple[str, ...]:
        """Whom they are about, in the order in which they come."""
        return tuple(dict.fromkeys(row.entity for row in self.test))

    def where(self, keep: Mapping[str, frozenset[str]], stated: bool = False) -> tuple[tuple[Row, ...], tuple[int, ...]]:
        """Rows of ``train`` whose fact is in ``keep`` (facts by entity), and places in ``test`` of all rows whose fact is not.

        Where ``stated``, the rows are those of ``statements``.
        """
        key = fact_keys((*self.train, *self.test))
        taught = tuple(row for row in (self.statements if stated else self.train) if key(row) in keep.get(row.entity, frozenset()))
        answers = {(row.entity, normalise_answer(row.answer)) for row in taught}
        places = (
            i
            for i, row in enumerate(self.test)
            if key(row) not in keep.get(row.entity, frozenset()) and (row.entity, normalise_answer(row.answer)) not in answers
        )
        return taught, tuple(places)


def splits(facts: Facts, share: float, count: int, seed: int) -> Iterator[dict[str, frozenset[str]]]:
    """``count`` choices of the facts of one side to be taught, by entity; see ``unlearn.data.splits.fact_splits``."""
    return fact_splits(facts.train, fact_keys((*facts.train, *facts.test)), facts.entities, share, count, seed)


def pools(data: EntityData) -> dict[str, tuple[str, ...]]:
    """Answers that occur for each attribute, over the rows about people whom the model knows."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    sets = [*(data.streams[name] for name in ("forget", "retain", "known")), *(data.evaluation.get(n, ()) for n in ("forget", "retain"))]
    for row in (row for rows in sets for row in rows if row.attribute and row.kind == "qa"):
        found[row.attribute][row.answer] = None
    return {attribute: tuple(answers) for attribute, answers in found.items() if len(answers) > 1}


def options_of(row: Row, pool: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Values that the answer of a row competes with, itself first: all of its attribute, else the row's wrong answers."""
    others = pool.get(row.attribute) or row.perturbed_answers
    return (row.answer, *(value for value in dict.fromkeys(others) if normalise_answer(value) != normalise_answer(row.answer)))


def target_facts(data: EntityData) -> Facts:
    """The questions of the forget rows, and the same facts in held-out wording where the source has it.

    Raises:
        DataError: there are no questions.
    """
    train = tuple(row for row in data.streams["forget"] if row.kind == "qa") or tuple(data.evaluation.get("forget", ()))
    train = train or tuple(row for row in data.streams["forget"] if row.prompt)
    test = tuple(data.evaluation.get("forget_paraphrased", ())) or tuple(data.evaluation.get("forget", ())) or train
    if not train or not test:
        raise DataError("The forget rows must hold questions, or sentences to go on with, to be attacked; found none.")
    return Facts(train, test, _statements(data, train, test))


def _statements(data: EntityData, train: Sequence[Row], test: Sequence[Row]) -> tuple[Row, ...]:
    """Forget rows that state one of the facts."""
    key = fact_keys((*train, *test))
    facts = {(row.entity, key(row), normalise_answer(row.answer)) for row in (*train, *test)}
    rows = (row for row in data.streams["forget"] if row.kind == "statement" and row not in train)
    return tuple(row for row in rows if (row.entity, key(row), normalise_answer(row.answer)) in facts)


def control_facts(data: EntityData, facts: Facts, seed: int) -> Facts:
    """The rows of ``facts`` with unknown names in the place of the targets' and made-up answers, one for each fact of a name.

    Names are held-out unknown ones where the source has them, so that no loss has seen them. Values are drawn from those that the fact's
    attribute has, else from the row's wrong answers, else from the answers of other rows.

    Raises:
        DataError: too few unknown names, or no row in which the name can be replaced.
    """
    held = [*data.evaluation.get("unknown", ()), *data.latent.get("unknown", ())]
    seen = [row for row in data.streams["unknown"] if row.mentions]
    taken = {name for row in (*facts.train, *facts.test) for name in (row.entity, *row.mentions)}
    names = dict.fromkeys(row.mentions[0] for row in (*held, *seen) if row.mentions)
    strangers = [name for name in names if name not in taken]
    few = len(dict.fromkeys(row.mentions[0] for row in held if row.mentions))
    wanted = len({row.entity for row in (*facts.train, *facts.test)})
    strangers = strangers[: max(few, wanted)]
    rows, key, pool = (*facts.train, *facts.test, *facts.statements), fact_keys((*facts.train, *facts.test)), pools(data)
    tagged = [replace(row, row_id=i) for i, row in enumerate(rows)]
    rng = np.random.default_rng(seed + 1)
    values: dict[tuple[str, str], tuple[str, ...]] = {}
    made: dict[int, Row] = {}
    for row in matched_rows(tagged, strangers, 1, seed):
        source = rows[row.row_id]
        fact = (row.entity, key(source))
        if fact not in values:
            asked = {other.answer for other in (*facts.train, *facts.test)}
            others = list(options_of(source, pool)) if len(options_of(source, pool)) > 1 else sorted(asked)
            values[fact] = tuple(others[i] for i in rng.permutation(len(others)))
        answer, *wrong = values[fact]
        made[row.row_id] = replace(
            row,
            row_id=source.row_id,
            answer=answer,
            accepted_answers=(),
            paraphrased_answer="",
            perturbed_answers=tuple(wrong[:N_OPTIONS]),
        )
    ends = (0, len(facts.train), len(facts.train) + len(facts.test), len(rows))
    found = Facts(*(tuple(row for i, row in made.items() if a <= i < b) for a, b in itertools.pairwise(ends)))
    if not found.train or not found.test:
        raise DataError("The forget rows must hold the full name of their entity, so that an unknown one can stand in; found none that do.")
    return found
