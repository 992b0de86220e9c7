import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.fake_runs import HOSTILE, STUDY, write_study
from unlearn.report import comparison_table
from unlearn.report.columns import COLUMNS, lines_of
from unlearn.report.markdown import results_table as markdown_table
from unlearn.tracking.reader import RunRecord, read_runs
from unlearn.tracking.rundir import RunDirectory


@pytest.fixture
def records(tmp_path):
    return read_runs(write_study(tmp_path))


def printed(records, width):
    out = io.StringIO()
    Console(file=out, width=width).print(comparison_table(records))
    return out.getvalue()


def row(markdown, label):
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_has_every_key_column(records):
    table = markdown_table(records)
    assert table.endswith("|\n")
    assert len(table.splitlines()) == 2 + len(STUDY)
    assert row(table, "sae_distribution") == [
        "sae_distribution", "sae_guided", "0.02", "0.02", "0.98", "0.98", "0.97", "2.89 (×1.00)", "0.54 (0.41–0.63)", "0.98", "no", "8.2",
    ]  # fmt: skip
    collapsed = row(table, "gradient_ascent")
    assert collapsed[10].startswith("yes (retain accuracy fell from 1.00 to 0.00; generic perplexity")
    assert collapsed[7] == "8.00 (×2.76)"
    assert row(table, "base")[1] == "none"
    assert row(table, "base")[-1] == "–"


def test_what_is_missing_is_a_dash(tmp_path):
    table = markdown_table(read_runs([RunDirectory.create(tmp_path, "bare").path]))
    assert row(table, "bare")[1:] == ["–"] * (1 + len(COLUMNS))


def test_perplexity_is_compared_with_the_run_of_the_original_model():
    base = RunRecord(name="base", path=Path(), config={"method": {"name": "none"}}, results={"generic/perplexity": 2.0})
    run = RunRecord(name="x", path=Path(), results={"generic/perplexity": 3.0})
    infinite = RunRecord(name="y", path=Path(), results={"generic/perplexity": float("inf"), "generic/perplexity_base": 4.0})
    texts = [line.cells[5].full for line in lines_of([base, run, infinite])]
    assert texts == ["2.00 (×1.00)", "3.00 (×1.50)", "inf (×inf)"]
    assert lines_of([run])[0].cells[5].full == "3.00"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_terminal_table_fits_and_keeps_every_value(records, width):
    text = printed(records, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for value in ("0.54", "0.41–0.63", "×2.76", "8.2", "yes", "0.66"):
        assert value in text
    assert "gradient_ascent collapsed: retain accuracy fell" in text


def test_the_terminal_table_prints_markup_and_control_signs_as_text(records):
    run = RunRecord(name="[bold red]x[/]\x1b[31m", path=Path(), config={"method": {"name": "[link=http://x]m"}})
    text = printed([run, *records], 200)
    assert "[bold red]x[/]" in text
    assert "[link=http://x]m" in text
    assert "\x1b" not in text


def test_markdown_escapes_what_would_be_markup():
    run = RunRecord(name=f"a|b{HOSTILE}`c`[x](http://y)\nz", path=Path())
    lines = markdown_table([run, RunRecord(name="other", path=Path())]).splitlines()
    assert len(lines) == 4
    assert "<script" not in lines[2]
    assert r"a\|b&lt;script&gt;alert(1)&lt;/script&gt;\`c\`[x]\(http://y) z" in lines[2]
    assert lines[2].replace(r"\|", "").count("|") == lines[0].count("|")


def test_no_runs_give_an_empty_table():
    assert len(markdown_table([]).splitlines()) == 2
    assert "run" in printed([], 120)
