"""Every number of a report comes from what the runs have written down."""

import json

import pytest

from tests.report.fake_runs import HOSTILE, write_large, write_run, write_study
from unlearn.report import write_report
from unlearn.report.figures import figures
from unlearn.report.html import render
from unlearn.report.latex import escape, latex
from unlearn.report.markdown import markdown
from unlearn.tracking.files import read_json
from unlearn.tracking.reader import read_run, read_runs
from unlearn.tracking.rundir import RunDirectory

FORMS = {
    "html": render,
    "md": lambda records, drawn: markdown(records, drawn, "f"),
    "tex": lambda records, drawn: latex(records, drawn, "f"),
}


def texts(records, drawn=None):
    drawn = figures(records) if drawn is None else drawn
    return {name: form(records, drawn) for name, form in FORMS.items()}


CHANGES = {
    "forget/accuracy": (0.123, "0.12"),
    "retain/accuracy_unseen": (0.777, "0.78"),
    "latent/c2st_auc": (0.876, "0.88"),
    "generic/perplexity": (4.321, "4.32"),
    "attack/relearn_excess": (0.654, "+0.65"),
    "attack/steer_excess": (0.234, "+0.23"),
    "cost/train_seconds": (43.21, "43.2"),
}


def test_a_number_changed_in_the_results_is_changed_in_every_form(tmp_path):
    """In the words and tables, without the figures; with them, once the old numbers are back, all is as it was."""
    paths = write_study(tmp_path, attacks=True)
    whole, before = texts(read_runs(paths)), texts(read_runs(paths), {})
    run = RunDirectory(tmp_path / "quickstart" / "npo")
    for key, (value, shown) in CHANGES.items():
        old = read_json(run.results_path)[key]
        run.write_results({key: value})
        after = texts(read_runs(paths), {})
        for name in FORMS:
            assert after[name].count(shown) > before[name].count(shown), (key, name)
        run.write_results({key: old})
    assert texts(read_runs(paths)) == whole


def test_any_result_stands_in_the_page_with_its_key(tmp_path):
    run = RunDirectory(write_run(tmp_path, "", "npo"))
    run.write_results({"latent/c2st_auc@heldout_sae": 0.31837})
    text = render([read_run(run.path)], {})
    assert "0.318" in text
    run.write_results({"latent/c2st_auc@heldout_sae": 0.41837})
    assert "0.418" in render([read_run(run.path)], {})


def test_the_mean_of_seeds_follows_every_seed(tmp_path):
    records = []
    for seed, value in enumerate((0.1, 0.2, 0.6)):
        run = RunDirectory(write_run(tmp_path / str(seed), "", "npo"))
        text = (
            run.config_path.read_text(encoding="utf-8").replace("seed: 0", f"seed: {seed}").replace("name: /npo", f"name: s/npo/seed{seed}")
        )
        run.write_config(text)
        run.write_results({"forget/accuracy": value})
        manifest = json.loads(run.manifest_path.read_text()) | {"name": f"s/npo/seed{seed}", "fingerprint": f"print{seed}"}
        run.manifest_path.write_text(json.dumps(manifest))
        records.append(read_run(run.path))
    found = texts(records)
    for text in found.values():
        assert "0.30" in text
        assert all(f"print{seed}" in text for seed in range(3))
        assert "ecdea0c5f2b1" in text
    assert "| npo | npo | 3 | 0.30 (0.10–0.60) |" in found["md"]
    assert "npo & 3 & \\shortstack[r]{0.30\\\\{\\tiny 0.10--0.60}}" in found["tex"]


def test_hostile_text_is_text_in_every_form(tmp_path):
    nasty = f"{HOSTILE} \\input{{/etc/passwd}} $x$ | `a` ](javascript:alert(1)) %50 {{{{7*7}}}} \x1b[31m"
    run = RunDirectory(write_run(tmp_path, "", "npo", person=nasty, attacks=True))
    config = f"name: {json.dumps(nasty)}\nmethod:\n  name: {json.dumps(nasty)}\n{json.dumps(nasty)}: {json.dumps(nasty)}\n"
    run.write_config(config)
    run.manifest_path.write_text(json.dumps({"name": nasty, nasty: nasty, "fingerprint": nasty, "git": {"commit": nasty}}))
    run.write_results({nasty: 1.0, "collapse/flag": 1, "collapse/reason": nasty})
    other = read_run(write_run(tmp_path, "", "rmu"))
    found = texts([read_run(run.path), other])
    assert "<script" not in found["html"]
    assert "\x1b" not in "".join(found.values())
    assert "<script" not in found["md"]
    assert "](javascript" not in found["md"]
    assert "\\input{" not in found["tex"]
    assert r"\textbackslash{}input\{/etc/passwd\} \$x\$ \textbar{}" in found["tex"]
    assert "7*7" in found["html"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a_b", r"a\_b"),
        ("50 %", r"50 \%"),
        ("{}", r"\{\}"),
        ("\\", r"\textbackslash{}"),
        ("# & ~ ^", r"\# \& \textasciitilde{} \textasciicircum{}"),
        ("0.41–0.63", "0.41--0.63"),
        ("é", "é"),
        ("日本", "??"),
        ("[x]", "{[}x{]}"),
    ],
)
def test_signs_of_latex(text, written):
    assert escape(text) == written


@pytest.mark.slow
def test_a_large_study_stays_readable_and_small(tmp_path):
    """30 methods with 5 seeds: every setting has its line, the page less than two megabytes, eight verdicts before the others."""
    records = read_runs(write_large(tmp_path / "runs"))
    assert len(records) == 150
    [page] = write_report(records, tmp_path / "large.html")
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 2_000_000
    assert "Of 29 trained settings" in text
    assert text[: text.index("The other 22 settings")].count("<li>") == 8
    numbers = text[text.index('id="numbers"') : text.index('id="front"')]
    assert numbers.count("<small>5 seeds</small>") == 30
    runs = text[text.index('aria-label="Runs"') :]
    assert runs[: runs.index("</table>")].count("<tr") == 151
    assert len(list((tmp_path / "large_figures").glob("picture_*.png"))) == 29
