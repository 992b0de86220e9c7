"""The report as Markdown: summary, tables, figures as links, provenance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearn.report.columns import COLUMNS, Column, columns_of, lines_of
from unlearn.report.headline import headline
from unlearn.report.names import DASH, labels_of, plain
from unlearn.report.pool import Setting, pool
from unlearn.report.provenance import runs, settings
from unlearn.report.relearning import attacked
from unlearn.report.sheets import outcome, sheets, tests_of
from unlearn.report.words import verdicts
from unlearn.tracking.reader import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(records: Sequence[RunRecord], figures: Mapping[str, Figure], folder: str, comparison: Mapping[str, Any] | None = None) -> str:
    """The report of ``records``; ``figures`` lie as PNG files in ``folder`` beside it."""
    from unlearn.report.figures import describe
    from unlearn.report.html import title_of

    pooled = pool(records)
    parts = [f"# {escape(title_of(pooled, comparison) or 'Comparison of runs')}"]
    if comparison is not None:
        parts += _comparison(comparison, provenance=len(records) < tests_of(comparison))
    parts += _summary(pooled) if pooled else []
    names, lines = attacked(pooled)
    if lines:
        head = ["setting", *names, "verdict"]
        rows = ([line.label, *(_cell(text, between) for text, between, _ in line.cells), line.word] for line in lines)
        parts += ["## Attacks", "What each attack gets out beyond its control.", _table(head, rows, 1)]
    if figures:
        parts.append("## Figures")
        parts += [f"![{escape(describe(name, figure))}]({_address(folder)}/{name}.png)" for name, figure in figures.items()]
    parts += ["## Settings that differ", _differing(pooled), "## Runs", _runs(pooled)] if pooled else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _comparison(summary: Mapping[str, Any], provenance: bool) -> list[str]:
    """The outcome of a comparison and its tables."""
    parts = [escape(outcome(summary))]
    for sheet in sheets(summary, provenance):
        rows = [[" · ".join((value.text, *value.below)) for value in row] for row in sheet.rows]
        parts += [f"## {escape(sheet.title)}", _table(sheet.head, rows, sheet.words), escape(sheet.note)]
    return parts


def _summary(pooled: Sequence[Setting]) -> list[str]:
    """What happened in words, and the numbers of all settings."""
    from unlearn.report.html import noun_of

    judged = verdicts(pooled)
    told = "\n".join(f"- **{escape(v.label)}**: {escape(v.sentence)}" for v in judged)
    return [escape(headline(judged, noun_of(pooled))), told, "## Numbers", results_table(pooled, columns_of(pooled)).rstrip()]


def results_table(records: Sequence[RunRecord], columns: Sequence[Column] = COLUMNS) -> str:
    """One line for each run or setting; intervals of several seeds stand in brackets. Ends in a newline."""
    lines = lines_of(records, columns)
    several = any(line.seeds > 1 for line in lines)
    head = ["setting" if several else "run", "method", *(["seeds"] if several else []), *(column.heading for column in columns)]
    rows = []
    for line, record in zip(lines, records, strict=True):
        cells = [cell.full if line.seeds == 1 else _cell(cell.full, cell.interval) for cell in line.cells]
        rows.append([line.label, line.method or plain(record.method) or DASH, *([str(line.seeds)] if several else []), *cells])
    return _table(head, rows, 2) + "\n"


def _cell(text: str, between: str) -> str:
    return f"{text} ({between})" if between else text


def _differing(pooled: Sequence[Setting]) -> str:
    facts = settings(pooled)
    rows = ([label, "; ".join(f"{key}={value}" for key, value in facts.of(i))] for i, label in enumerate(labels_of(pooled)))
    return _table(["setting", "keys"], rows, 2) if facts.differing else ""


def _runs(pooled: Sequence[Setting]) -> str:
    found = runs(pooled)
    return _table(["run", *found.columns], ([name, *texts] for _, name, texts in found.rows), 1 + len(found.columns))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int | Sequence[int]) -> str:
    """A Markdown table; the first ``left`` columns, or those at ``left``, are flush left, the others right."""
    words = range(left) if isinstance(left, int) else left
    lines = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "".join(" --- |" if column in words else " ---: |" for column in range(len(head))))
    return "\n".join(lines)


def _address(folder: str) -> str:
    from urllib.parse import quote

    return quote(folder)


def escape(text: str) -> str:
    """``text`` without anything that Markdown or the HTML inside it would read as markup."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    for sign in "\\|*`":
        text = text.replace(sign, "\\" + sign)
    return text.replace("](", "]\\(")
