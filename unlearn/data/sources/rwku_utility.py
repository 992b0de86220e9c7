"""RWKU's utility sets as rows: MMLU, BBH, TruthfulQA, TriviaQA and AlpacaEval questions, without their solved examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unlearn.data.sources.benchmark import PART
from unlearn.data.sources.choices import choice_problem, choice_row
from unlearn.data.sources.tables import Record, checked
from unlearn.types import Row


def _question(record: Mapping[str, Any]) -> str:
    return str(record.get("question") or record.get("instruction") or record.get("query") or "").strip()


def _general(row_id: int, record: Mapping[str, Any]) -> Row:
    """An MMLU question; the letters are compared."""
    checked([dict(record)], choice_problem, "RWKU utility_general")
    return choice_row(row_id, record, str(record.get("task", "general")), header=True)


def _row(row_id: int, prompt: str, answers: Sequence[str], wrong: Sequence[str] = (), task: str = "") -> Row | None:
    if not prompt or not answers or not answers[0].strip():
        return None
    return Row(
        row_id=row_id,
        entity=f"utility {row_id}",
        prompt=prompt,
        answer=answers[0],
        attribute=task,
        perturbed_answers=tuple(wrong),
        accepted_answers=tuple(dict.fromkeys(answers[1:])),
    )


def _reason(row_id: int, record: Mapping[str, Any]) -> Row | None:
    """A BBH question; the answer may be a list."""
    return _row(
        row_id, f"Q: {_question(record)}\nA:", _listed(record.get("answer", record.get("target"))), task=str(record.get("task", ""))
    )


def _truthfulness(row_id: int, record: Mapping[str, Any]) -> Row | None:
    """A TruthfulQA question: the true answer against the false ones of MC1."""
    targets = record.get("mc1_targets") or {}
    options, labels = targets.get("choices") or (), targets.get("labels") or ()
    right = [option for option, label in zip(options, labels, strict=False) if label == 1]
    wrong = [option for option, label in zip(options, labels, strict=False) if label != 1]
    return _row(row_id, f"Q: {_question(record)}\nA:", right, wrong)


def _factuality(row_id: int, record: Mapping[str, Any]) -> Row | None:
    """A TriviaQA question with all answers that are accepted."""
    return _row(row_id, f"Please briefly answer the following question:\nQ: {_question(record)}\nA:", _listed(record.get("answers")))


def _fluency(row_id: int, record: Mapping[str, Any]) -> Row | None:
    """An instruction of AlpacaEval; what a reference model wrote is the answer."""
    return _row(row_id, _question(record), _listed(record.get("output") or record.get("answer")))


def _listed(value: object) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [str(item) for item in found if item is not None and str(item).strip()]


_MAKE: Mapping[str, Callable[[int, Mapping[str, Any]], Row | None]] = {
    "utility_general": _general,
    "utility_reason": _reason,
    "utility_truthfulness": _truthfulness,
    "utility_factuality": _factuality,
    "utility_fluency": _fluency,
}


def utility_rows(read: Callable[[str], list[Record]], first_id: int) -> dict[str, Sequence[Row]]:
    """The utility sets by the name of their table; records without a question or an answer are passed over, and so are tables without rows.

    The tables of the hub repeat their questions for each target; every question is taken once.

    Args:
        read: gives the records of a table, none where it is missing.
        first_id: id of the first row of the first table; each table has a share of its own.
    """
    found: dict[str, Sequence[Row]] = {}
    for place, (name, make) in enumerate(_MAKE.items()):
        once = list({_question(record): record for record in read(name)}.values())
        rows = [row for i, record in enumerate(once) if (row := make(first_id + place * PART + i, record)) is not None]
        if rows:
            found[name] = rows
    return found
