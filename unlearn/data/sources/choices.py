"""Multiple-choice rows: the question with lettered options; the answer is a letter, the other letters are the wrong answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearn.config.checks import check
from unlearn.data.sources.benchmark import BenchmarkConfig, named
from unlearn.data.sources.terms import find_terms
from unlearn.functional.choice import LETTERS, choice_prompt
from unlearn.types import Row

HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"
"""What stands before a question in MMLU (arXiv 2009.03300) and WMDP (arXiv 2403.03218), without the solved examples."""


@dataclass(frozen=True, kw_only=True)
class ChoiceConfig(BenchmarkConfig):
    """Fields of sources whose questions are multiple-choice ones."""

    question_format: str = "{question}"
    """text around a question, which brings its options and "Answer:" along; must contain {question}"""
    append_eos: bool = False
    """whether the end-of-sequence token follows the answer; without it the options are compared by the letter alone, as benchmarks do"""
    max_length: int = 1024
    """longest row in tokens; a longer one is an error, never cut silently"""
    header: bool = True
    """whether a line that names the subject stands before a question"""
    max_words: int = 250
    """questions of more words, options included, are left out, >= 1; the notes say how many"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.max_words >= 1, "data.max_words", ">= 1", self.max_words)


def choice_problem(record: Mapping[str, Any]) -> str:
    """What is wrong with a {question, choices, answer} record, or an empty string.

    >>> choice_problem({"question": "Which?", "choices": ["a", "b"], "answer": 2})
    'answer must be the number of one of 2 choices; found 2'
    """
    options, answer = record.get("choices"), record.get("answer")
    if not isinstance(record.get("question"), str):
        return f"question must be a text; found {record.get('question')!r}"
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        return f"choices must be a list of 2 to {len(LETTERS)} texts; found {options!r:.60}"
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        return f"answer must be the number of one of {len(options)} choices; found {answer!r}"
    return ""


def choice_row(row_id: int, record: Mapping[str, Any], subject: str, header: bool, kind: str = "qa") -> Row:
    """A row whose prompt ends with ``Answer:``; it names no entity yet.

    >>> choice_row(0, {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}, "sums", header=False).prompt
    '2 + 2?\\nA. 3\\nB. 4\\nAnswer:'
    """
    options = [str(option) for option in record["choices"]]
    letters = LETTERS[: len(options)]
    lead = HEADER.format(subject=subject.replace("_", " ")) if header else ""
    right = letters[record["answer"]]
    return Row(
        row_id=row_id,
        entity=f"{subject} question {row_id}",
        prompt=lead + choice_prompt(record["question"], options),
        answer=right,
        kind=kind,
        attribute=subject,
        perturbed_answers=tuple(letter for letter in letters if letter != right),
    )


def choice_rows(records: Sequence[Mapping[str, Any]], first_id: int, header: bool, max_words: int) -> tuple[list[Row], dict[int, str], int]:
    """Rows of {question, choices, answer, subject} records without mentions, the question of each, and how many were too long."""
    rows = [choice_row(first_id + i, record, str(record["subject"]), header) for i, record in enumerate(records)]
    questions = {first_id + i: str(record["question"]) for i, record in enumerate(records)}
    kept = [row for row in rows if len(row.prompt.split()) <= max_words]
    return kept, questions, len(rows) - len(kept)


def with_terms(rows: Sequence[Row], questions: Mapping[int, str], others: Sequence[str] = ()) -> list[Row]:
    """Rows that are about the term of their question, where one is found that none of ``others`` holds.

    Args:
        rows: rows without mentions.
        questions: the question of each row id, without options.
        others: texts that must not name the term.
    """
    made = []
    for row, term in zip(rows, find_terms([questions[row.row_id] for row in rows], others), strict=True):
        about = named(row, (term,)) if term else row
        made.append(replace(about, entity=term) if about.mentions else row)
    return made
