"""The LaTeX form: its structure, and, where there is a LaTeX, what that makes of it."""

import re
import shutil
import subprocess

import pytest

from tests.report.fake_runs import HOSTILE, write_large, write_run, write_study
from unlearn.report.latex import latex
from unlearn.tracking.reader import read_run, read_runs

DOCUMENT = r"""\documentclass{article}
\usepackage[utf8]{inputenc}\usepackage[T1]{fontenc}
\usepackage{booktabs,longtable,textcomp,graphicx}
\begin{document}
\input{report}
\end{document}
"""


def balanced(text):
    """Environments and braces that close in the order in which they open."""
    depth, open_environments = 0, []
    for token in re.finditer(r"\\begin\{(\w+)\}|\\end\{(\w+)\}|\\.|[{}]", text, re.DOTALL):
        if token[1]:
            open_environments.append(token[1])
        elif token[2]:
            assert open_environments.pop() == token[2]
        else:
            depth += {"{": 1, "}": -1}.get(token[0], 0)
            assert depth >= 0
    return depth == 0 and not open_environments


def tables(text):
    """Number of columns that each table declares, and of cells in each of its rows."""
    for found in re.finditer(r"\\begin\{(tabular|longtable)\}\{(.*?)\}\n(.*?)\\end\{\1\}", text, re.DOTALL):
        columns = len(re.sub(r"p\{[^{}]*\}?", "l", found[2] + "}").rstrip("}"))
        body = found[3][found[3].index("\\toprule") :]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        yield columns, [len(re.split(r"(?<!\\)&", row)) for row in rows]


def test_every_row_has_the_columns_of_its_table(tmp_path):
    text = latex(read_runs(write_study(tmp_path, attacks=True)), {}, "figures")
    assert balanced(text)
    found = list(tables(text))
    assert [len(rows) for _, rows in found] == [7, 7, 7, 7]  # results, attacks, settings, runs: a head and six runs
    for columns, rows in found:
        assert set(rows) == {columns}
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 4
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(labels) == len(set(labels)) == 4


def test_a_bare_run_has_its_table(tmp_path):
    text = latex([read_run(write_run(tmp_path, "", "npo"))], {}, "figures")
    assert balanced(text)
    assert "tab:unlearn-attacks" not in text
    assert "tab:unlearn-results" in text


@pytest.mark.slow
def test_a_latex_takes_it(tmp_path):
    """Compiled where there is a LaTeX (the checks of CI install one); its structure is checked everywhere."""
    records = read_runs([*write_large(tmp_path / "large", methods=12, seeds=2), write_run(tmp_path, "x", "npo", person=HOSTILE)])
    text = latex(records, {}, "figures")
    assert balanced(text)
    program = shutil.which("pdflatex")
    if program is not None:
        (tmp_path / "report.tex").write_text(text, encoding="utf-8")
        (tmp_path / "doc.tex").write_text(DOCUMENT, encoding="utf-8")
        words = (program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "doc.tex")
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / "doc.pdf").stat().st_size > 10_000
