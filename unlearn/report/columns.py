"""The columns of every comparison, whether it is printed, written as Markdown or shown in a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unlearn.report.names import DASH, base_of, labels_of, large, original, plain
from unlearn.report.pool import Setting
from unlearn.tracking.reader import RunRecord


@dataclass(frozen=True)
class Cell:
    """``text`` is the value; ``note`` stands beside it; ``interval`` is its 95 % interval, shown where there is room."""

    text: str = DASH
    note: str = ""
    interval: str = ""

    @property
    def full(self) -> str:
        """Value, and the note in brackets."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Column:
    """``title`` heads a narrow table, ``heading`` a wide one; ``better`` is ``lower``, ``higher`` or empty.

    ``wraps`` is the width in characters down to which value and note may share a line; 0 never wraps.
    """

    title: str
    heading: str
    read: Callable[[RunRecord, RunRecord | None], Cell]
    better: str = ""
    wraps: int = 0


def share(key: str) -> Callable[[RunRecord, RunRecord | None], Cell]:
    """Reader of a result in [0, 1]."""

    def read(record: RunRecord, base: RunRecord | None) -> Cell:
        value = record.number(key)
        return Cell() if value is None else Cell(f"{value:.2f}", interval=_interval(record, f"{key}/ci_low", f"{key}/ci_high"))

    return read


def perplexity(record: RunRecord, base: RunRecord | None) -> Cell:
    """Perplexity on generic text and its ratio to the original model's."""
    value, before = record.number("generic/perplexity"), original(record, "generic/perplexity", base)
    if value is None:
        return Cell()
    return Cell(large(value), f"×{_ratio(value / before)}" if before else "")


def two_sample(record: RunRecord, base: RunRecord | None) -> Cell:
    """AUC of the classifier two-sample test with the interval that two groups of unknown entities give."""
    value, null = record.number("latent/c2st_auc"), _interval(record, "latent/c2st_null_low", "latent/c2st_null_high")
    return Cell() if value is None else Cell(f"{value:.2f}", null)


def collapse(record: RunRecord, base: RunRecord | None) -> Cell:
    """Whether the model collapsed, or with how many of its seeds, and why."""
    flag = record.number("collapse/flag")
    if not flag:
        return Cell() if flag is None else Cell("no")
    n = len(record.runs) if isinstance(record, Setting) else 1
    count = "yes" if flag == 1 else f"{round(flag * n)} of {n}"
    return Cell(count, plain(record.results.get("collapse/reason") or ""))


def relearned(record: RunRecord, base: RunRecord | None) -> Cell:
    """Facts that relearning others brings back, beyond the control on unknown names."""
    value = record.number("attack/relearn_excess")
    if value is None:
        return Cell()
    return Cell(f"{value:+.2f}", interval=_interval(record, "attack/relearn_excess/ci_low", "attack/relearn_excess/ci_high", "+.2f"))


def seconds(record: RunRecord, base: RunRecord | None) -> Cell:
    """Seconds spent in training steps."""
    value = record.number("cost/train_seconds")
    return Cell() if value is None else Cell(f"{value:.1f}" if value < 100 else f"{value:.0f}")


def _interval(record: RunRecord, low: str, high: str, form: str = ".2f") -> str:
    ends = record.number(low), record.number(high)
    if ends[0] is None or ends[1] is None or f"{ends[0]:{form}}" == f"{ends[1]:{form}}":
        return ""
    return f"{ends[0]:{form}}{' to ' if '+' in form else '–'}{ends[1]:{form}}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 100 else large(value)


COLUMNS: tuple[Column, ...] = (
    Column("forget", "forget accuracy", share("forget/accuracy"), "lower"),
    Column("other\nwords", "forget, other words", share("forget/accuracy_paraphrased"), "lower"),
    Column("un-\nknown", "answers “unknown”", share("forget/refusal_rate")),
    Column("retain", "retain accuracy", share("retain/accuracy"), "higher"),
    Column("un-\nseen", "retain, unseen", share("retain/accuracy_unseen"), "higher"),
    Column("per-\nplexity", "perplexity (× original)", perplexity, "lower", wraps=7),
    Column("C2ST\nAUC", "C2ST AUC (chance)", two_sample, wraps=9),
    Column("P(unk)", "P(unknown)", share("latent/p_unknown")),
    Column("col-\nlapse", "collapsed", collapse),
    Column("s", "seconds", seconds, "lower"),
)


RELEARNED = Column("re-\nlearned", "relearned, beyond control", relearned, "lower")


def columns_of(records: Sequence[RunRecord]) -> tuple[Column, ...]:
    """``COLUMNS``, and what relearning brings back where it was tried."""
    tried = any(record.number("attack/relearn_excess") is not None for record in records)
    return (*COLUMNS[:-1], RELEARNED, COLUMNS[-1]) if tried else COLUMNS


@dataclass(frozen=True)
class Line:
    """One row of a table; ``method`` is empty where the label says it already; ``seeds`` counts the runs behind it."""

    label: str
    method: str
    cells: tuple[Cell, ...]
    seeds: int = 1


def lines_of(records: Sequence[RunRecord], columns: Sequence[Column] = COLUMNS) -> list[Line]:
    """One line for each run or setting, in the given order."""
    base = base_of(records)
    lines = []
    for record, label in zip(records, labels_of(records), strict=True):
        method = "" if plain(record.method) == label else plain(record.method)
        if record.manifest.get("intervention"):
            method = f"{method} (inference only)".strip()
        seeds = len(record.runs) if isinstance(record, Setting) else 1
        lines.append(Line(label, method, tuple(column.read(record, base) for column in columns), seeds))
    return lines
