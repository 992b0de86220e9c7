"""Tables for a paper: results, attacks, settings and runs, for the packages booktabs and longtable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearn.report.columns import columns_of, lines_of
from unlearn.report.names import labels_of, plain
from unlearn.report.pool import Setting, pool
from unlearn.report.provenance import runs, settings
from unlearn.report.relearning import attacked
from unlearn.report.sheets import Sheet, sheets, tests_of
from unlearn.tracking.reader import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNS: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", "–": "--", "—": "---", "×": r"$\times$",
    "·": r"$\cdot$", "“": "``", "”": "''", "…": r"\ldots{}", "²": r"\textsuperscript{2}",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "[": "{[}", "]": "{]}",
}  # fmt: skip
"""Sign -> how LaTeX writes it; a bracket in braces is no option of the command before it."""
HEAD = r"""% Needs \usepackage{booktabs,longtable,textcomp,graphicx} and, with an engine older than 2018, \usepackage[utf8]{inputenc}.
% Figures lie as PNG in the folder @."""
TALL = 16
"""Rows of a comparison's table up to which an interval and a p-value have a line each."""
RUN_FACTS = ("seed", "fingerprint", "commit", "started")
"""Facts on a run that the last table shows; the HTML page has all."""


def latex(records: Sequence[RunRecord], figures: Mapping[str, Figure], folder: str, comparison: Mapping[str, Any] | None = None) -> str:
    r"""A fragment to be read by ``\input``: a ``table`` of results, one of attacks where there were any, long ones of settings and runs.

    Tables of a ``comparison`` stand before them.
    """
    pooled = pool(records)
    parts = [HEAD.replace("@", plain(folder))]
    if comparison is not None:
        parts += [_sheet(sheet) for sheet in sheets(comparison, provenance=len(records) < tests_of(comparison))]
    parts += [_results(pooled), _attacks(pooled), _settings(pooled), _runs(pooled)] if pooled else []
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: object) -> str:
    r"""``text`` so that LaTeX prints it; signs that its Latin fonts lack become a question mark.

    >>> escape("50 % of $x_1$ & \\rm"), escape("日")
    ('50 \\% of \\$x\\_1\\$ \\& \\textbackslash{}rm', '?')
    """
    return "".join(SIGNS.get(c) or (c if c.isascii() or "À" <= c <= "ſ" else "?") for c in plain(text))


def _sheet(sheet: Sheet) -> str:
    """A table of a comparison, its note below the title; what is long goes on over pages, its last column as wide as the rest allows."""
    label, caption = f"comparison-{sheet.name}", escape(f"{sheet.title}. {sheet.note}".strip())
    low = len(sheet.rows) > TALL  # so that the table fits a page
    rows = [[_stacked(value.text, *(["; ".join(value.below)] if low else value.below)) for value in row] for row in sheet.rows]
    if sheet.long:
        wide = sheet.name == "tuning"
        if wide:
            last = [rf"{{\raggedright {_split(values[-1].text)}\par}}" for values in sheet.rows]
            rows = [[*row[:-1], text] for row, text in zip(rows, last, strict=True)]
        columns = "".join("l" if i in sheet.words else "r" for i in range(len(sheet.head)))
        columns = f"{columns[:-1]}p{{0.42\\linewidth}}" if wide else columns
        return _long(caption, label, [_heading(cell) for cell in sheet.head], rows, columns)
    columns = "".join("l" if i in sheet.words else "r" for i in range(len(sheet.head)))
    return _table(caption, label, [_heading(cell) for cell in sheet.head], rows, columns)


def _results(pooled: Sequence[Setting]) -> str:
    columns = columns_of(pooled)
    lines = lines_of(pooled, columns)
    several = any(line.seeds > 1 for line in lines)
    head = ["setting", *(["seeds"] if several else [])]
    head += [column.heading + {"lower": " ↓", "higher": " ↑", "": ""}[column.better] for column in columns]
    rows = []
    for line in lines:
        cells = [_stacked(cell.text, cell.interval or ("" if len(cell.note) > 20 else cell.note)) for cell in line.cells]
        rows.append([escape(line.label), *([str(line.seeds)] if several else []), *cells])
    spread = "Intervals: 95\\,\\% bootstrap over seeds." if several else "Intervals: 95\\,\\% bootstrap over entities."
    caption = f"Results. {spread} C2ST AUC: 0.5 is indistinguishable from unknown entities; below it, what chance gives."
    return _table(caption, "results", [_heading(cell) for cell in head], rows, "l" + "r" * (len(head) - 1))


def _attacks(pooled: Sequence[Setting]) -> str:
    names, lines = attacked(pooled)
    if not lines:
        return ""
    rows = []
    for line in lines:
        cells = [rf"\textbf{{{escape(text)}}}" if out else escape(text) for text, _, out in line.cells]
        rows.append([escape(line.label), *cells, escape(line.word)])
    caption = "Share of facts that each attack gets out beyond its control on unknown names; bold: by more than chance."
    return _table(caption, "attacks", [_heading(cell) for cell in ("setting", *names, "verdict")], rows, "l" + "r" * len(names) + "l")


def _settings(pooled: Sequence[Setting]) -> str:
    facts = settings(pooled)
    if not facts.differing:
        return ""
    rows = [
        [escape(label), ", ".join(rf"\texttt{{{_split(f'{key}={value}')}}}" for key, value in facts.of(i))]
        for i, label in enumerate(labels_of(pooled))
    ]
    return _long("Settings that differ.", "settings", ["setting", "keys"], rows, r"p{0.22\linewidth}p{0.7\linewidth}")


def _runs(pooled: Sequence[Setting]) -> str:
    found = runs(pooled)
    kept = [index for index, key in enumerate(found.columns) if key in RUN_FACTS]
    rows = [[escape(name), *(rf"\texttt{{{escape(texts[index])}}}" for index in kept)] for _, name, texts in found.rows]
    return _long("Runs.", "runs", ["run", *(escape(found.columns[index]) for index in kept)], rows, "l" * (1 + len(kept)))


def _stacked(text: str, *below: str) -> str:
    """A value with its interval and whatever else there is, smaller, below it."""
    small = "".join(rf"\\{{\tiny {escape(one)}}}" for one in below if one)
    return rf"\shortstack[r]{{{escape(text)}{small}}}" if small else escape(text)


def _heading(text: str) -> str:
    """A heading over several lines, broken at commas and brackets."""
    words = text.replace(", ", ",\n").replace(" (", "\n(").split("\n")
    return "\\shortstack{" + r"\\".join(escape(word) for word in words) + "}"


def _split(text: str) -> str:
    """Escaped, with places at which a long key may go on in the next line."""
    return escape(text).replace(".", r".\allowbreak{}").replace("=", r"=\allowbreak{}")


def _table(caption: str, label: str, head: Sequence[str], rows: Iterable[Sequence[str]], columns: str) -> str:
    """One float; a table that is too wide is made as narrow as the text."""
    body = " \\\\\n".join(" & ".join(row) for row in rows)
    table = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}"
    table = f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{table}}}"
    return f"\\begin{{table}}[htbp]\n\\centering\\small\n\\caption{{{caption}}}\n\\label{{tab:unlearn-{label}}}\n{table}\n\\end{{table}}"


def _long(caption: str, label: str, head: Sequence[str], rows: Iterable[Sequence[str]], columns: str) -> str:
    """A table that may go on over pages."""
    body = " \\\\\n".join(" & ".join(row) for row in rows)
    top = f"\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n\\endhead\n\\bottomrule\n\\endlastfoot"
    begin = f"\\begin{{longtable}}{{{columns}}}\n\\caption{{{caption}}}\\label{{tab:unlearn-{label}}}\\\\"
    return f"{{\\scriptsize\n{begin}\n{top}\n{body} \\\\\n\\end{{longtable}}}}"
