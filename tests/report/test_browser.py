"""The page in a real browser, at the widths of a desk and of a phone, light and dark."""

import re

import pytest

from tests.browser import fit
from tests.comparison.records import plan_of, write_all
from tests.report.fake_runs import write_large, write_study
from unlearn.comparison.conclude import conclude
from unlearn.report import write_report
from unlearn.tracking.reader import read_runs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["study", "large", "comparison"])
def test_nothing_reaches_out_of_the_page(tmp_path, kind):
    """Measured by a Chromium where there is one (CI installs it); that wide things lie in boxes that scroll is checked everywhere."""
    paths = write_study(tmp_path / "runs", attacks=True) if kind != "large" else write_large(tmp_path / "runs", methods=12, seeds=2)
    plan = plan_of(tmp_path / "ledger", seeds=tuple(range(5)))
    write_all(plan, {name: {"relearn": 0.3} for name in plan.methods})
    [page] = write_report(read_runs(paths), tmp_path / "r.html", conclude(plan) if kind == "comparison" else None)
    text = page.read_text(encoding="utf-8")
    body = text[text.index("<body>") :]
    tables = [match.start() for match in re.finditer("<table", body)]
    assert len(tables) > 3
    assert all('<div class="scroll' in body[max(0, start - 200) : start] for start in tables)
    for width in (1280, 390):
        for dark in (False, True):
            found = fit(page, tmp_path / "browser", width, dark=dark)
            if found is not None:
                assert found["needs"] <= found["width"] <= width, found
                assert found["wide"] == []
                assert found["dark"] == dark
