"""Answers side by side: for each question what was said before, and what each setting says after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unlearn.report.names import BASE_METHOD, DASH, labels_of, plain
from unlearn.tracking.reader import RunRecord

SETS = {
    "forget": "to be forgotten",
    "forget_paraphrased": "to be forgotten, in other words",
    "retain": "to be kept",
    "retain_unseen": "to be kept, in no loss",
    "unknown": "never known",
}
"""Evaluation set -> words."""


@dataclass
class Asked:
    """One question; ``answers`` maps what is said after to the labels of those that say it, ``differs`` where one is not as before."""

    set: str
    prompt: str
    reference: str
    before: str
    answers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether some setting answers otherwise than the original model."""
        return set(self.answers) != {self.before}


def questions(records: Sequence[RunRecord]) -> list[Asked]:
    """Every question that a run (other than the original model's) kept a sample of, set by set, in the order of the first run."""
    found: dict[tuple[str, str], Asked] = {}
    for record, label in zip(records, labels_of(records), strict=True):
        if record.method == BASE_METHOD:
            continue
        for row in record.samples:
            name = str(row.get("set") or "")
            key = name, str(row.get("prompt"))
            if key not in found:
                words = SETS.get(name, plain(name.replace("_", " ")))
                found[key] = Asked(words, answer(row.get("prompt")), answer(row.get("reference")), answer(row.get("before")))
            elif found[key].before == DASH:
                found[key].before = answer(row.get("before"))
            found[key].answers.setdefault(answer(row.get("after")), []).append(label)
    order = list(SETS)
    keys = sorted(found, key=lambda key: order.index(key[0]) if key[0] in order else len(order))
    return [found[key] for key in keys]


def answer(value: object) -> str:
    """The text of an answer; an empty one is said to be empty."""
    return DASH if value is None else "".join(c for c in str(value) if c.isprintable() or c == "\n").strip() or "(nothing)"
