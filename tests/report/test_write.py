"""A report in every form, and where its figures go."""

import pytest

from tests.report.fake_runs import write_run
from unlearn.errors import RunError
from unlearn.report import write_report
from unlearn.report.write import figures_of
from unlearn.tracking.reader import read_run


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(folder, "s", name, attacks=True)) for name in ("base", "npo")]


def test_a_folder_gets_every_form_and_every_figure_twice(records, tmp_path):
    files = write_report(records, tmp_path / "out")
    assert [file.name for file in files] == ["report.html", "report.md", "report.tex"]
    names = {path.name for path in (tmp_path / "out" / "report_figures").iterdir()}
    stems = {name.partition(".")[0] for name in names}
    assert {"front", "forget_retain", "hidden", "c2st", "answers", "steps_p_unknown", "relearn", "relearning", "picture_2"} <= stems
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    text = files[1].read_text(encoding="utf-8")
    for stem in stems:
        assert f"](report_figures/{stem}.png)" in text


@pytest.mark.parametrize(("name", "start"), [("a.html", "<!DOCTYPE html>"), ("a.md", "# s"), ("a.tex", "% Needs")])
def test_one_form_and_its_figures_beside_it(records, tmp_path, name, start):
    files = write_report(records, tmp_path / name)
    assert files == [tmp_path / name]
    assert files[0].read_text(encoding="utf-8").startswith(start)
    assert {path.name for path in tmp_path.iterdir()} == {name, "a_figures"}
    assert (figures_of(files[0]) / "front.svg").is_file()


def test_what_is_no_report(records, tmp_path):
    with pytest.raises(RunError, match="needs at least one run"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(RunError, match=r"must end in .html, .md or .tex, or be a folder.*r\.pdf"):
        write_report(records, tmp_path / "r.pdf")
    assert not any(tmp_path.iterdir())
