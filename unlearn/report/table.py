"""The comparison table for the terminal."""

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
    """A rich table of the key columns, one row for each run or setting; a missing value is a dash, reasons of a collapse stand below."""
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
        if line.seeds > 1:
            name.append(f" ({line.seeds} seeds)", style="dim")
        cells = []
        for column, cell in zip(COLUMNS, line.cells, strict=True):
            if column.heading == "collapsed":
                cells.append(Text(cell.text, style="" if cell.text in ("no", DASH) else "bold red"))
                reasons += [f"{line.label} collapsed: {cell.note}"] if cell.note else []
                continue
            text = Text(cell.text)
            text.append(f" {cell.note}" if cell.note else "", style="dim")
            cells.append(text)
        table.add_row(name, *cells)
    several = ["several seeds of one setting: their mean"] if any(line.seeds > 1 for line in lines) else []
    table.caption = Text("\n".join([LEGEND, *several, *reasons]), style="dim")
    return table
