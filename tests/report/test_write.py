"""A report in every form, and where its figures go."""

import json
import re
from pathlib import Path

import pytest

from tests.report.fake_runs import write_run
from unlearn.errors import RunError
from unlearn.report import write_report
from unlearn.report.write import WRITTEN, digest, figures_of
from unlearn.tracking.reader import read_run


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(folder, "s", name, attacks=True)) for name in ("base", "npo")]


def test_a_folder_gets_every_form_and_every_figure_twice(records, tmp_path):
    files = write_report(records, tmp_path / "out")
    assert [file.name for file in files] == ["report.html", "report.md", "report.tex"]
    names = {path.name for path in (tmp_path / "out" / "report_figures").iterdir()}
    stems = {name.partition(".")[0] for name in names} - {""}
    assert {"front", "forget_retain", "hidden", "c2st", "answers", "steps_p_unknown", "relearn", "relearning", "picture_2"} <= stems
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")} | {WRITTEN}
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


def test_figures_of_an_earlier_report_are_deleted_and_nothing_else(records, tmp_path):
    """What somebody put there, or changed, stays; so does what a list that is not ours would have deleted."""
    folder = figures_of(*write_report(records, tmp_path / "r.md"))
    assert (folder / "picture_2.png").is_file()
    for name in ("mine.png", "front.svg"):
        (folder / name).write_text("drawn by hand")
    (tmp_path / "outside.png").write_text("not in the folder")
    listed = json.loads((folder / WRITTEN).read_text())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    sure = digest(tmp_path / "outside.png")
    (folder / WRITTEN).write_text(json.dumps({**listed, "../outside.png": sure, "link.png": sure, "gone.png": sure, "picture_9.png": 3}))
    write_report(records[:1], tmp_path / "r.md")
    left = {path.name for path in folder.iterdir()}
    assert {"mine.png", "front.svg", "link.png"} <= left
    assert not {"picture_2.png", "picture_2.svg", "front.png"} & left
    assert (tmp_path / "outside.png").read_text() == "not in the folder"
    ours = left - {"mine.png", "front.svg", "link.png", WRITTEN}
    assert ours == set(json.loads((folder / WRITTEN).read_text()))
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert {f"{Path(name).stem}.png" for name in ours} == set(re.findall(r"\(r_figures/(.*?)\)", text))


def test_without_a_list_nothing_is_deleted(records, tmp_path):
    folder = figures_of(*write_report(records, tmp_path / "r.md"))
    (folder / WRITTEN).write_text('{"picture_2.png": "torn')
    write_report(records[:1], tmp_path / "r.md")
    assert (folder / "picture_2.png").is_file()
