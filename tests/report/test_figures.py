from pathlib import Path

import pytest

from tests.report.fake_runs import NULL, write_study
from unlearn.report.figures import describe, figures
from unlearn.report.objectives import CROWD
from unlearn.report.svg import inline_svg
from unlearn.tracking.reader import RunRecord, read_runs


def test_a_study_gives_every_figure(tmp_path):
    drawn = figures(read_runs(write_study(tmp_path, attacks=True)))
    assert list(drawn) == [
        "front",
        "forget_retain",
        "hidden",
        "c2st",
        "answers",
        "steps_distance_to_known",
        "steps_distance_to_unknown",
        "steps_p_unknown",
        "steps_c2st_auc",
        "relearn",
        "relearning",
        *(f"picture_{i}" for i in range(2, 7)),
    ]
    for name, figure in drawn.items():
        ax = figure.axes[0]
        assert ax.get_xlabel() or name == "front"
        assert ax.get_title(loc="left") or name == "relearning"
        assert describe(name, figure)
    texts = {text.get_text() for text in drawn["steps_distance_to_unknown"].axes[0].texts}
    assert {"npo", "sae_distribution", "known", "unseen unknown"} <= texts
    assert "base" not in texts
    lines = [line for line in drawn["steps_c2st_auc"].axes[0].get_lines() if len(line.get_xdata()) == 7]
    assert len(lines) == 5


def test_nothing_to_draw():
    bare = RunRecord(name="x", path=Path())
    assert figures([bare]) == {}
    assert figures([]) == {}


def test_only_what_is_there_is_drawn():
    run = RunRecord(
        name="x",
        path=Path(),
        results={"forget/accuracy": 0.1, "latent/c2st_auc": 0.4},
        metrics=[{"step": 0, "stage": "train", "key": "latent/p_unknown", "value": 0.1}],
    )
    assert list(figures([run])) == ["c2st"]  # one run is no front


def test_a_curve_that_is_not_finite_is_left_out():
    rows = [{"step": step, "stage": "", "key": "latent/p_unknown", "value": value} for step, value in ((0, 0.1), (10, float("nan")))]
    assert figures([RunRecord(name="x", path=Path(), metrics=rows)]) == {}


def test_bands_are_drawn_where_the_runs_agree():
    rows = [{"step": step, "stage": "", "key": "latent/distance_to_unknown", "value": 2.0} for step in (0, 10)]
    runs = [RunRecord(name=name, path=Path(), metrics=rows, results=NULL) for name in "ab"]
    texts = [text.get_text() for text in figures(runs)["steps_distance_to_unknown"].axes[0].texts]
    assert "unseen unknown" in texts
    runs[1] = RunRecord(name="b", path=Path(), metrics=rows, results={**NULL, "latent/null_distance_low": 0.1})
    texts = [text.get_text() for text in figures(runs)["steps_distance_to_unknown"].axes[0].texts]
    assert "unseen unknown" not in texts
    assert "known" in texts


@pytest.mark.filterwarnings("error")
def test_names_that_look_like_formulas_or_have_no_glyph():
    names = ["$\\frac{", "_hidden", "日本語", "<script>", "x" * 200]
    results = {"forget/accuracy": 0.0, "retain/accuracy": 1.0, "latent/c2st_auc": 0.5}
    drawn = figures([RunRecord(name=name, path=Path(), results=results) for name in names])
    svg = inline_svg(drawn["forget_retain"], "x")
    assert "$\\frac{" in svg
    assert "_hidden" in svg
    assert "日本語" in svg
    assert "<script>" not in svg
    assert "x" * 30 not in svg


def test_many_runs_keep_their_labels_apart():
    runs = [RunRecord(name=f"run{i}", path=Path(), results={"forget/accuracy": 0.0, "retain/accuracy": 0.99}) for i in range(12)]
    for n, named in ((8, 8), (12, CROWD)):
        ax = figures(runs[:n])["forget_retain"].axes[0]
        heights = sorted(text.get_position()[1] for text in ax.texts if text.get_text().startswith("run"))
        assert len(heights) == named
        assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) > 0.07
    assert "grey: 6 others" in {text.get_text() for text in ax.figure.texts}
