"""Questions that somebody types: whom they are about, by the names of a data source or by brackets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from unlearn.data.entities import occurrences
from unlearn.types import EntityData, Row

FORGOTTEN, KEPT, NOBODY = "forgotten", "kept", "nobody"
"""What the data says of a name: to be forgotten, to be kept, borne by nobody the model was to know."""

_BRACKETS = re.compile(r"\[([^\[\]]+)\]")


@dataclass(frozen=True)
class Question:
    """A question as it is asked; ``name`` as it stands there ("" where nobody is named), ``group`` what the data says of it ("": nothing),
    ``reference`` the data's answer ("" where the data has no such question)."""

    text: str
    name: str = ""
    group: str = ""
    reference: str = ""

    def row(self, answer: str) -> Row:
        """The question as a row; ``answer`` is a stand-in, which the model does not see."""
        return Row(row_id=0, entity=self.name, prompt=self.text, answer=answer, mentions=(self.name,) if self.name else ())


@dataclass(frozen=True)
class Names:
    """Names of a data source: ``groups`` by form, ``answers`` by question."""

    groups: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: EntityData) -> Names:
        """Names and questions of every stream and evaluation set."""
        sets = [(FORGOTTEN, data.streams["forget"]), (NOBODY, data.streams["unknown"])]
        sets += [(_group(name), rows) for name, rows in data.evaluation.items()]
        sets += [(KEPT, data.streams[name]) for name in ("retain", "known")]
        groups: dict[str, str] = {}
        answers: dict[str, str] = {}
        for group, rows in sets:
            for row in rows:
                for form in row.mentions:
                    groups.setdefault(form, group)
                if row.kind == "qa":
                    answers.setdefault(row.prompt, row.answer)
        return cls(groups, answers)

    def read(self, typed: str) -> Question:
        """The question in what was typed: the longest known name in it, spelt as the data spells it; [brackets] mark any name.

        >>> Names({"Ada Byron": "kept"}).read("when was ada byron born?")
        Question(text='when was Ada Byron born?', name='Ada Byron', group='kept', reference='')
        >>> Names().read("Who is [Xo Yp]?")
        Question(text='Who is Xo Yp?', name='Xo Yp', group='', reference='')
        """
        text = " ".join(typed.split())
        if marked := _BRACKETS.search(text):
            name = marked[1].strip()
            text = _BRACKETS.sub(lambda m: m[1].strip(), text)
            return Question(text, name, self.groups.get(name, ""), self.answers.get(text, ""))
        text, name = self._find(text)
        return Question(text, name, self.groups.get(name, ""), self.answers.get(text, ""))

    def _find(self, text: str) -> tuple[str, str]:
        for form in sorted(self.groups, key=lambda form: -len(form)):
            if occurrences(text, form):
                return text, form
            spans = occurrences(text.casefold(), form.casefold()) if len(text.casefold()) == len(text) else []
            if spans:
                start, end = spans[-1]
                return text[:start] + form + text[end:], form
        return text, ""


def _group(name: str) -> str:
    return FORGOTTEN if name.startswith("forget") else NOBODY if name.startswith("unknown") else KEPT


def examples(data: EntityData, skip: int = 0) -> list[Question]:
    """Questions to start with: two about targets, one about somebody in no loss (or kept), one about nobody; ``skip`` gives others."""
    sets = data.evaluation
    kept = sets.get("retain_unseen") or sets.get("retain") or ()
    wanted = ((FORGOTTEN, sets.get("forget", ()), 2), (KEPT, kept, 1), (NOBODY, sets.get("unknown", ()), 1))
    return [question for group, rows, count in wanted for question in _some(group, rows, count, skip)]


def _some(group: str, rows: Iterable[Row], count: int, skip: int) -> list[Question]:
    """``count`` questions, each about another entity and in other words as far as there are such."""
    by_entity: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "qa" and row.mentions:
            by_entity.setdefault(row.entity, []).append(row)
    chosen: list[Question] = []
    people: Sequence[list[Row]] = list(by_entity.values())
    for i in range(min(count, len(people))):
        place = skip * count + i
        own = people[place % len(people)]
        row = own[(place + place // len(people)) % len(own)]
        name = next((form for form in row.mentions if occurrences(row.prompt, form)), "")
        chosen.append(Question(row.prompt, name, group, row.answer))
    return chosen
