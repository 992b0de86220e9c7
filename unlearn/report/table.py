"""The comparison table for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlearn.report.columns import COLUMNS, lines_of
from unlearn.report.names import DASH
from unlearn.tracking.reader import RunRecord

if TYPE_CHECKING:
    from rich.table import Table

LEGEND = "accuracies and rates in [0, 1] · C2ST AUC: 0.5 is indistinguishable, beside it what two groups of unknown entities give"


def comparison_table(records: Sequence[RunRecord]) -> Table:
    """A rich table of the key columns, one row for each run; a missing value is a dash, reasons of a collapse stand below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lines = lines_of(records)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, caption_justify="left")
    table.add_column("run", overflow="fold", min_width=10)
    for column in COLUMNS:
        table.add_column(column.title, justify="right", vertical="top", no_wrap=not column.wraps, min_width=column.wraps or None)
    reasons = []
    for line in lines:
        name = Text(line.label)
        if line.method:
            name.append(f" {line.method}", style="dim")
        cells = []
        for column, cell in zip(COLUMNS, line.cells, strict=True):
            if column.heading == "collapsed":
                cells.append(Text(cell.text, style="bold red" if cell.text == "yes" else ""))
                reasons += [f"{line.label} collapsed: {cell.note}"] if cell.note else []
                continue
            text = Text(cell.text)
            text.append(f" {cell.note}" if cell.note else "", style="dim")
            cells.append(text)
        table.add_row(name, *cells)
    table.caption = Text("\n".join([LEGEND, *reasons]), style="dim")
    return table


def markdown_table(records: Sequence[RunRecord]) -> str:
    """The same columns as a Markdown table that ends in a newline."""
    lines = lines_of(records)
    rows = [["run", "method", *(column.heading for column in COLUMNS)]]
    for line, record in zip(lines, records, strict=True):
        rows.append([line.label, line.method or record.method or DASH, *(cell.full for cell in line.cells)])
    text = ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows]
    text.insert(1, "|" + " --- |" * 2 + " ---: |" * len(COLUMNS))
    return "\n".join(text) + "\n"


def _escape(cell: str) -> str:
    """``cell`` without anything that Markdown or the HTML inside it would read as markup."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        cell = cell.replace(sign, entity)
    for sign in "\\|*`":
        cell = cell.replace(sign, "\\" + sign)
    return cell.replace("](", "]\\(")
