import json
import re
from html.parser import HTMLParser

import pytest

from tests.report.fake_runs import HOSTILE, write_run, write_study
from unlearn.report import write_report
from unlearn.tracking.reader import read_run, read_runs
from unlearn.tracking.rundir import RunDirectory

SECTIONS = (
    "Summary",
    "Of five trained runs",
    "Numbers",
    "Pareto front",
    "Recognition",
    "Where the entities went",
    "Erased, or hidden?",
    "Answers before",
)
VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and visible text; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def written(records, path):
    [file] = write_report(records, path)
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    records = read_runs(write_study(folder, attacks=True))
    [path] = write_report(records, folder / "report" / "index.html")
    return records, path, path.read_text(encoding="utf-8")


def test_the_page_stands_alone(study):
    text = study[2]
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value.startswith("#"), value
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))
    assert "default-src 'none'" in text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_summary_comes_first_and_in_words(study):
    text = Page(study[2]).text
    order = [text.index(word) for word in SECTIONS]
    assert order == sorted(order)
    assert "a classifier does not tell the entities from unknown ones (C2ST AUC 0.54, chance gives 0.41 to 0.63), but relearning" in text
    assert "it collapsed: retain accuracy fell from 1.00 to 0.00" in text


def test_light_and_dark_and_narrow(study):
    text = study[2]
    assert text.count("@media (prefers-color-scheme: dark)") == 2
    assert "--run-0:#0072b2" in text
    assert "--run-0:#56b4e9" in text
    assert 'name="viewport"' in text
    body = text[text.index("<body>") :]
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(href="#|url\(#|id=")[^")]*', "", body))
    assert all('<div class="scroll' in body[max(0, m.start() - 200) : m.start()] for m in re.finditer("<table", body))


def test_every_number_stands_in_the_results(study):
    records, _, text = study
    page = Page(text).text
    for record in records:
        stored = json.loads((record.path / "results.json").read_text())
        assert f"{stored['forget/accuracy']:.2f}" in page
        assert f"{stored['latent/c2st_auc']:.2f}" in page
    assert "latent/mmd_p_value" in page
    assert "forget/accuracy/ci_low" not in page  # an interval stands below its value
    assert "0.0200 to 0.060" in page


def test_samples_stand_side_by_side(study):
    text = study[2]
    samples = text[text.index('id="samples"') : text.index('id="provenance"')]
    assert "Where was Bako Veda born?" in samples
    assert "unknown unknown unknown unknown unknown" in samples
    assert "to be forgotten, in other words" in samples
    first = Page(samples[samples.index("<article") : samples.index("</article>") + 10]).text
    assert "beforeNimora" in first
    assert "gradient_ascentunknown unknown unknown unknown unknown" in first
    assert "npo, rmu, sae_prototype, sae_distributionunknown" in first
    assert "base" not in first  # the original model has no after


def test_settings_and_provenance_without_what_is_local(study):
    text = study[2]
    page = Page(text).text
    for fact in ("2.13.0", "ecdea0c5f2b1", "8f14e45fceea167a", "2026-02-03T10:20:30+00:00", "unlearn run quickstart.yaml"):
        assert fact in page
    assert "method.objective" in page
    for secret in ("secret", "mlflow:5000", "/home/someone", str(study[1].parent.parent)):
        assert secret not in text


def test_the_page_is_the_same_each_time(study, tmp_path):
    assert written(study[0], tmp_path / "again.html") == study[2]


def test_hostile_names_are_shown_and_not_run(tmp_path):
    path = write_run(tmp_path, "", "npo", person=HOSTILE)
    run = RunDirectory(path)
    hostile = f"\"{HOSTILE}'{{{{7*7}}}}</style><img src=x onerror=alert(2)>"
    run.write_results({"collapse/flag": 1, "collapse/reason": hostile, hostile: 1.0})
    run.write_config(f"name: {json.dumps(hostile)}\nmethod:\n  name: {json.dumps(hostile)}\n{json.dumps(hostile)}: {json.dumps(hostile)}\n")
    run.manifest_path.write_text(json.dumps({"name": hostile, "command": hostile, hostile: [hostile], "git": {"commit": hostile}}))
    run.set_status("failed", hostile)
    run.append_samples([{"set": hostile, "prompt": hostile, "reference": hostile, "before": hostile, "after": None}])
    text = written([read_run(path)], tmp_path / "r.html")
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "{{7*7}}" in page.text
    assert "Where was <script>alert(1)</script> born?" in page.text
    assert text.count("</style>") == 1


def test_a_bare_run_has_a_page(tmp_path):
    record = read_run(RunDirectory.create(tmp_path, "study/bare").path)
    page = Page(written([record], tmp_path / "r.html"))
    assert "No results yet" in page.text
    assert "Recognition" not in page.text
    assert "bare" in page.text


def test_odd_results_do_not_stop_a_report(tmp_path):
    run = RunDirectory.create(tmp_path, "odd")
    values = {"forget/accuracy": float("nan"), "retain/accuracy": 1.0, "generic/perplexity": float("inf"), "generic/perplexity_base": 0.0}
    run.write_results({**values, "collapse/flag": 1, "latent/c2st_auc": "a text"})
    run.append_metrics(0, "train", {"latent/p_unknown": float("inf")})
    run.append_metrics(9, "train", {"latent/p_unknown": 0.5})
    run.append_samples([{"set": "forget"}, {"prompt": 3, "after": ["x"]}])
    run.activations_path.write_bytes(b"torn")
    page = Page(written([read_run(run.path)], tmp_path / "r.html"))
    assert "it collapsed" in page.text
    assert "nan %" not in page.text
    assert "inf" in page.text
