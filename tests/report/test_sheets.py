"""A comparison in a report: every number is that of summary.json, and the words say what the tests can tell."""

from __future__ import annotations

import copy
import json
import re

import pytest

from tests.comparison.records import plan_of, write_all
from tests.report.fake_runs import HOSTILE, write_large
from tests.report.test_latex import balanced, tables
from unlearn.cli import main
from unlearn.comparison.conclude import conclude
from unlearn.comparison.ledger import STUDY, SUMMARY
from unlearn.errors import RunError
from unlearn.report import write_report
from unlearn.report.figures import figures
from unlearn.report.front import front_of_comparison
from unlearn.report.html import render
from unlearn.report.latex import latex
from unlearn.report.markdown import markdown
from unlearn.report.sheets import is_ledger, outcome, read_summary, sheets
from unlearn.tracking.reader import read_runs

NUMBERS = {
    "none": {"forget": 1.0, "relearn": 1.0},
    "npo": {"relearn": 0.4, "auc": 0.6},
    "rmu": {"forget": 0.1, "unseen": 0.9, "relearn": 0.5, "auc": 0.7, "cost": 9.0},  # worse than npo in everything
    "wga": {"unseen": 0.0, "relearn": 0.0, "auc": 0.9},
}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    plan = plan_of(tmp_path_factory.mktemp("ledger"), seeds=tuple(range(8)))
    made = write_all(plan, NUMBERS)
    made.write(made.folder / STUDY, {"trials": 2})
    made.write(made.folder / SUMMARY, conclude(plan))
    return made.folder


@pytest.fixture
def summary(ledger):
    return read_summary(ledger)


def texts(summary, records=()):
    return {
        "html": render(records, {}, summary),
        "md": markdown(records, {}, "f", summary),
        "tex": latex(records, {}, "f", summary),
    }


def rmu(summary):
    return summary["methods"]["rmu"]


CHANGES = {
    "rank": (lambda s: rmu(s).update(rank=7.3), "7.3"),
    "score": (lambda s: rmu(s)["score"].update(mean=0.4711), "0.47"),
    "interval": (lambda s: rmu(s)["robustness"].update(ci_low=0.3377), "0.34 to"),
    "Holm": (lambda s: rmu(s)["score"].update(p_holm=0.6543), "p = 0.65"),
    "a result": (lambda s: rmu(s)["results"]["generic/perplexity"].update(mean=47.12), "47.1"),
    "cost": (lambda s: rmu(s)["cost"].update(mean=8123.0), "8123"),
    "verdicts": (lambda s: rmu(s).update(verdicts=["erased"] * 3 + ["damaged"] * 5), "damaged 5, erased 3"),
    "chosen": (lambda s: rmu(s)["params"].update({"optim.lr": 0.00777}), "0.00777"),
    "budget": (lambda s: rmu(s)["tuning"].update(trials={"finished": 311}), "311"),
    "tuning's cost": (lambda s: rmu(s)["tuning"].update(cpu_seconds=9876.0), "9876"),
    "validation": (lambda s: rmu(s).update(tuning_score=0.8181), "0.82"),
    "beaten": (lambda s: rmu(s).update(dominated_by=["simnpo"]), "beaten by simnpo"),
    "fingerprint": (lambda s: rmu(s)["made"][0].update(fingerprint="feedbeef"), "feedbeef"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_number_changed_in_the_file_is_changed_in_every_form(ledger, tmp_path, what):
    change, shown = CHANGES[what]
    before = texts(read_summary(ledger))
    changed = json.loads((ledger / SUMMARY).read_text())
    change(changed)
    (tmp_path / SUMMARY).write_text(json.dumps(changed))
    after = texts(read_summary(tmp_path))
    for form, text in after.items():
        plain = text.replace("<wbr>", "").replace("\\allowbreak{}", "")
        assert plain.count(shown) > before[form].replace("<wbr>", "").replace("\\allowbreak{}", "").count(shown), form


def test_the_asterisk_follows_the_adjusted_p(summary):
    """Eight seeds, every one of wga worse: 2 / 2^8, twice by Holm."""
    assert summary["methods"]["wga"]["score"]["p_holm"] == pytest.approx(4 / 2**8)
    row = next(line for line in texts(summary)["md"].splitlines() if line.startswith("| wga |"))
    assert "* · p = 0.016 |" in row
    summary["methods"]["wga"]["score"]["p_holm"] = 0.05
    row = next(line for line in texts(summary)["md"].splitlines() if line.startswith("| wga |"))
    assert "p = 0.05 |" in row.split("|")[3] + "|"
    assert "*" not in row.split("|")[3].replace("\\*", "")


def test_what_the_terminal_shows_is_shown(summary):
    for text in texts(summary).values():
        for word in ("mean rank", "Pareto front", "permutation test", "budget of 2 trials", "Holm", "npo (reference)", "none (not tuned)"):
            assert word in text
        assert "Attacks: relearn." in text


def test_the_words_say_what_the_tests_can_tell(summary):
    assert outcome(summary) == (
        "3 methods were tuned with 2 trials each on validation rows and measured with 8 seeds on test rows. Best by mean rank of the "
        "score, of 3 with all seeds: npo (1.0), rmu (2.0), wga (3.0). On the Pareto front over forgetting, retention, "
        "indistinguishability, robustness and cost: npo, wga. In score, rmu, wga differ from npo (Holm-adjusted p < 0.05). "
        "No method is erased with every seed: each is damaged, still answers, or gives facts back under attack."
    )
    few = {**copy.deepcopy(summary), "seeds": [0, 1, 2, 3, 4]}
    assert "5 seeds are too few for a test of the score to tell a method from npo." in outcome(few)
    assert "no test by seed can get below p = 0.062" in sheets(few)[0].note
    rmu(summary)["verdicts"] = ["erased"] * 8
    assert outcome(summary).endswith("Erased with every seed, as far as the attacks tell: rmu.")
    assert outcome({**summary, "attacks": "none"}).endswith("whether the facts are erased or only hidden was not tested.")


def test_an_unfinished_comparison_says_so(tmp_path):
    plan = plan_of(tmp_path, methods=("npo", "rmu"), seeds=(0, 1))
    made = write_all(plan, {name: NUMBERS[name] for name in ("npo", "rmu")})
    made.test_path("rmu", 1).unlink()
    found = conclude(plan)
    assert "so far 3 of 4 tests are made. Fewer than two methods have all their tests" in outcome(found)
    assert front_of_comparison(found) is None
    assert "rmu (1 of 2 seeds)" in texts(found)["md"]
    made.test_path("npo", 0).unlink()
    assert texts(conclude(plan))["md"].count("| npo (reference) (1 of 2 seeds) |") == 2
    empty = conclude(plan_of(tmp_path / "empty"))
    assert "0 methods were tuned" in texts(empty)["md"]


def test_the_front_is_that_of_the_file(summary):
    drawn = front_of_comparison(summary)
    assert drawn is not None
    labels = [(tick.get_text(), tick.get_fontweight()) for tick in drawn.axes[0].get_yticklabels()]
    assert labels == [("npo", "bold"), ("rmu", "normal"), ("wga", "bold"), ("none", "normal")]  # by rank, then what is beside
    rmu(summary)["pareto"] = True
    rmu(summary)["robustness"].update(mean=0.123, ci_low=0.1, ci_high=0.2)
    again = front_of_comparison(summary)
    assert again.axes[0].get_yticklabels()[1].get_fontweight() == "bold"
    places = [line.get_xdata()[0] for line in again.axes[3].get_lines() if len(line.get_xdata()) == 1]
    assert places[1] == 0.123
    assert list(figures([], summary)) == ["front"]


def said(*words):
    """Exit status of the command."""
    with pytest.raises(SystemExit) as ending:
        main(list(words))
    return ending.value.code or 0


@pytest.mark.parametrize("columns", ["60", "80", "100", "160"])
def test_nothing_is_cut_off_in_the_terminal(ledger, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert said("compare", str(ledger)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    shown = "".join("".join(lines).split())
    assert "Holm-adjustedp<0.05)" in shown
    assert "differsfromnpo(" in shown
    assert "hidden" in shown  # the last column
    assert ("noroomfor" in shown) == (int(columns) < 100)
    assert all(name in shown for name in ("method", "rmu", "forget", "unseen"))  # whole words


def test_a_ledger_alone_makes_every_form(ledger, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert is_ledger(ledger)
    assert said("compare", str(ledger), "--out", str(tmp_path / "out")) == 0
    assert "differs from npo" in capsys.readouterr().out.replace("\n", " ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "report.tex", "report_figures"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h1>made</h1>" in page
    assert "4 methods · 32 tests" in page
    assert "Numbers</h2>" not in page
    assert "![" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert said("compare", str(ledger), str(ledger)) == 2
    assert "One comparison at a time" in capsys.readouterr().err
    (tmp_path / SUMMARY).write_text('{"methods": {}}')
    with pytest.raises(RunError, match=r"summary\.json must be the summary of a comparison; found another file"):
        read_summary(tmp_path)


def test_runs_and_comparison_stand_in_one_page(summary, tmp_path):
    """With the folders of all tests their own table says what made them; with some, the ledger says it of all."""
    runs = read_runs(write_large(tmp_path, methods=3, seeds=2))
    page = render(runs, {}, summary)
    assert "4 methods · 32 tests · 3 settings · 6 runs" in page
    order = [page.index(word) for word in ("Summary</h2>", "Comparison</h2>", "One by one</h2>", "Numbers</h2>", "Runs</h3>")]
    assert order == sorted(order)
    assert "commit behind every test" in page
    for found in summary["methods"].values():
        found["seeds"] = found["seeds"][:1]
    assert "commit behind every test" not in render(runs, {}, summary)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_tables_of_a_comparison_are_sound_latex(summary):
    text = latex([], {}, "f", summary)
    assert balanced(text)
    found = list(tables(text))
    assert len(found) == 4
    for columns, rows in found:
        assert set(rows) == {columns}


def test_hostile_names_are_text(summary):
    nasty = f"{HOSTILE} \\input{{x}} | `a` ](javascript:alert(1))"
    summary["methods"][nasty] = {**copy.deepcopy(rmu(summary)), "params": {nasty: nasty}, "verdicts": [nasty]}
    summary |= {"reference": nasty, "name": nasty, "attacks": nasty}
    found = texts(summary)
    assert "<script" not in found["html"] + found["md"]
    assert "](javascript" not in found["md"]
    assert "\\input{" not in found["tex"]
    assert front_of_comparison(summary) is not None


def test_one_form_of_a_comparison_without_runs(summary, tmp_path):
    [file] = write_report([], tmp_path / "a.md", summary)
    assert file.read_text(encoding="utf-8").startswith("# made\n\n3 methods were tuned")
