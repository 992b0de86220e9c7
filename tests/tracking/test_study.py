"""Studies in MLflow: one parent for all runs of a folder, and what its pages go by."""

import pytest

from tests.forks import free_port
from tests.tracking.stores import client, new_store
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import TrackingConfig
from unlearn.tracking.files import read_json
from unlearn.tracking.mlflow import make_mlflow_logger
from unlearn.tracking.store import metric_name
from unlearn.tracking.study import FILE, PARENT, add_to_study, join_study, naming


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where artifacts go
    return TrackingConfig(uri=new_store(tmp_path / "mlflow.db"), experiment="studies")


def begin(tracking, out, name):
    tracker = make_mlflow_logger(tracking, name, {"a": 1}, {"seed": "0"})
    join_study(tracker, tracking, out, name)
    tracker.finalize("finished")
    return client(tracking.uri).get_run(tracker.run_id)


def test_runs_of_a_study_have_one_parent(tracking, tmp_path):
    runs = [begin(tracking, tmp_path / "runs", name) for name in ("s/a/seed0", "s/a/seed1", "s/b", "t/a", "alone")]
    parents = [run.data.tags.get(PARENT) for run in runs]
    assert parents[0] is not None
    assert parents[0] == parents[1] == parents[2] != parents[3]
    assert parents[4] is None
    parent = client(tracking.uri).get_run(parents[0])
    assert parent.info.run_name == "s"
    assert parent.info.status == "FINISHED"
    assert (parent.data.tags["kind"], parent.data.tags["study"]) == ("study", "s")
    assert read_json(tmp_path / "runs" / "s" / FILE)["run_id"] == parents[0]
    assert len(client(tracking.uri).search_runs(["1"], "tags.kind = 'study'")) == 2


def test_a_store_that_has_lost_the_parent_gets_a_new_one(tracking, tmp_path):
    first = begin(tracking, tmp_path, "s/a").data.tags[PARENT]
    again = TrackingConfig(uri=new_store(tmp_path / "other.db"), experiment="studies")
    second = begin(again, tmp_path, "s/b")
    assert second.data.tags[PARENT] != first
    assert client(again.uri).get_run(second.data.tags[PARENT]).info.run_name == "s"
    assert read_json(tmp_path / "s" / FILE)["uri"] == again.uri


def test_a_report_is_kept_with_its_study(tracking, tmp_path):
    report, figure = tmp_path / "report.html", tmp_path / "front.png"
    report.write_text("<!DOCTYPE html>")
    figure.write_bytes(b"png")
    assert not add_to_study(tracking, tmp_path / "s", [report], [figure])  # nothing was tracked there
    parent = begin(tracking, tmp_path, "s/a").data.tags[PARENT]
    assert add_to_study(tracking, tmp_path / "s", [report], [figure])
    assert [item.path for item in client(tracking.uri).list_artifacts(parent)] == ["figures", "report.html"]
    assert [item.path for item in client(tracking.uri).list_artifacts(parent, "figures")] == ["figures/front.png"]
    assert client(tracking.uri).get_run(parent).info.status == "FINISHED"
    assert not add_to_study(TrackingConfig(enabled=False), tmp_path / "s", [report], [])


def test_the_experiment_says_what_it_holds_unless_somebody_has(tracking, tmp_path):
    begin(tracking, tmp_path, "alone")
    store = client(tracking.uri)
    tags = store.get_experiment_by_name("studies").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.experiment.primaryMetric.name"] == "forget/accuracy"
    mine = store.create_experiment("mine", tags={"mlflow.experimentKind": "finetuning", "mlflow.note.content": "my words"})
    begin(TrackingConfig(uri=tracking.uri, experiment="mine"), tmp_path, "alone2")
    tags = store.get_experiment(mine).tags
    assert (tags["mlflow.experimentKind"], tags["mlflow.note.content"]) == ("finetuning", "my words")


@pytest.mark.parametrize("written", [True, False])
def test_another_process_may_say_it_at_the_same_moment(tracking, tmp_path, monkeypatch, recwarn, written):
    """As PostgreSQL does it: the second of two equal tags is refused, the first one is there."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    write = MlflowClient.set_experiment_tag

    def refused(self, *tag):
        if written:
            write(self, *tag)
        raise MlflowException("duplicate key value violates unique constraint")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refused)
    tracker = make_mlflow_logger(tracking, "alone", {})
    tracker.finalize("finished")
    said = [str(warning.message) for warning in recwarn if "MLflow store" in str(warning.message)]
    assert bool(said) == (not written)
    if written:
        assert client(tracking.uri).get_experiment_by_name("studies").tags["mlflow.experimentKind"] == "custom_model_development"


@pytest.mark.filterwarnings("ignore:The MLflow store")
def test_a_store_that_is_away_has_no_studies(tmp_path):
    away = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    tracker = make_mlflow_logger(away, "s/a", {})
    join_study(tracker, away, tmp_path, "s/a")
    assert not (tmp_path / "s" / FILE).exists()


def test_runs_are_tagged_by_what_one_looks_for():
    base = {"name": "s/npo/seed3", "seed": 3, "data": {"source": "world"}, "method": {"name": "npo"}}
    config = load_config(base, [], plugin_schemas())
    manifest = {"fingerprint": "f", "model_fingerprint": "m", "batch": {"forget": 2}, "versions": {"torch": "2"}, "git": {"commit": "c"}}
    tags = naming(config, manifest)
    wanted = {"kind": "run", "seed": "3", "study": "s", "source": "world", "method": "npo", "fingerprint": "f", "version.torch": "2"}
    assert wanted.items() <= tags.items()
    assert tags["mlflow.source.git.commit"] == tags["git_commit"] == "c"
    assert naming(config, {**manifest, "git": None})["git_commit"] == ""
    assert all(isinstance(value, str) for value in tags.values())


def test_intervals_make_one_section_and_every_other_key_keeps_its_scope():
    names = [metric_name(f"{scope}/accuracy{end}") for scope in ("forget", "retain") for end in ("", "/ci_low", "/ci_high")]
    assert {name.rpartition("/")[0] for name in names} == {"forget", "retain", "interval"}
    assert len(set(names)) == 6
