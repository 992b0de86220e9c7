"""Loading with two made-up plug-ins, so that nothing but configuration is tested."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from unlearn.config.checks import check
from unlearn.config.fingerprint import to_yaml
from unlearn.config.load import load_config, load_study
from unlearn.config.schema import BatchConfig, MethodConfig, SourceConfig
from unlearn.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class PushConfig(MethodConfig):
    """Pushes."""

    beta: float = 0.1
    """strength, > 0"""
    mode: Literal["hard", "soft"] = "soft"
    """how"""
    weights: dict[str, float] = field(default_factory=lambda: {"a": 1.0, "b": 1.0})
    """weights of the terms"""

    def __post_init__(self) -> None:
        check(self.beta > 0, "method.beta", "> 0", self.beta)


@dataclass(frozen=True, kw_only=True)
class FileConfig(SourceConfig):
    """Reads a file."""

    path: str = "???"
    """the file"""
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(forget=4))
    """rows of each stream"""
    inner: BatchConfig | None = None
    """absent unless given"""


@dataclass(frozen=True, kw_only=True)
class ShareConfig(SourceConfig):
    """Its own check divides by what another check refuses."""

    groups: int = 2
    """groups, >= 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.groups >= 1, "data.groups", ">= 1", self.groups)
        check(self.max_length / self.groups > 1, "data.groups", "fewer than data.max_length", self.groups)


def lookup(key, known):
    def find(name):
        if name not in known:
            raise ConfigError(f"{key} must name a known one ({', '.join(known)}); found {name!r}.{did_you_mean(name, known)}")
        return known[name]

    return find


SCHEMAS = {
    "data": lookup("data.source", {"file": FileConfig, "share": ShareConfig}),
    "method": lookup("method.name", {"push": PushConfig, "plain": MethodConfig}),
}
GOOD = {"name": "a", "data": {"source": "file", "path": "rows"}, "method": {"name": "push"}}


def problems(source, overrides=(), load=load_config):
    with pytest.raises(ConfigError) as error:
        load(source, overrides, SCHEMAS)
    return list(error.value.problems)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(tree, name="run.yaml"):
        (tmp_path / name).write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return name

    return write


def test_defaults_file_and_overrides_in_that_order(write):
    path = write({**GOOD, "optim": {"lr": 1e-3, "steps": 5}})
    config = load_config(path, ["optim.steps=7", "method.beta=2", "seed=3"], SCHEMAS)
    assert (config.optim.lr, config.optim.steps, config.optim.clip, config.seed) == (1e-3, 7, 1.0, 3)
    assert isinstance(config.method, PushConfig)
    assert isinstance(config.data, FileConfig)
    assert (config.method.beta, config.data.path) == (2.0, "rows")


def test_values_take_the_declared_type():
    config = load_config(GOOD, ["trainer.devices=2", "method.beta=1", "name=7", "optim.betas=[0,0.5]"], SCHEMAS)
    assert (config.trainer.devices, config.name) == ("2", "7")
    assert isinstance(config.method.beta, float)
    assert config.optim.betas == [0.0, 0.5]


def test_later_files_win(write):
    a, b = write(GOOD), write({"optim": {"lr": 2.0}, "method": {"beta": 3}}, "b.yaml")
    config = load_config([a, b, {"seed": 9}], (), SCHEMAS)
    assert (config.optim.lr, config.method.beta, config.seed) == (2.0, 3.0, 9)


def test_a_plugin_may_change_the_defaults_of_a_shared_section():
    config = load_config(GOOD, ["data.batch.retain=5"], SCHEMAS)
    assert (config.data.batch.forget, config.data.batch.retain, config.data.batch.known) == (4, 5, 32)


def test_an_optional_section_appears_when_it_is_given():
    assert load_config(GOOD, (), SCHEMAS).data.inner is None
    assert load_config(GOOD, ["data.inner.known=2"], SCHEMAS).data.inner == BatchConfig(known=2)


def test_an_empty_section_is_the_defaults(write):
    assert load_config(write("name: a\ndata: {source: file, path: x}\nmethod: {name: push}\noptim:\n"), (), SCHEMAS).optim.steps == 60


def test_mappings_merge_key_by_key():
    assert load_config(GOOD, ["method.weights.b=2", "method.weights.c=3"], SCHEMAS).method.weights == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_interpolation_sees_defaults_and_environment(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    overrides = ["out=${oc.env:SCRATCH}/runs", "optim.warmup_steps=${optim.steps}", "optim.betas=['${method.beta}', 0.5]"]
    config = load_config(GOOD, overrides, SCHEMAS)
    assert (config.out, config.optim.warmup_steps, config.optim.betas) == ("/scratch/runs", 60, [0.1, 0.5])


def test_interpolation_errors():
    found = problems(GOOD, ["out=${nope}", "seed=${method.mode}"])
    assert found[0].startswith("command line: out must refer to something that exists; found '${nope}'")
    assert found[1] == "command line: seed must be a whole number (int); found 'soft'."


def test_yaml_of_a_config_reads_back():
    config = load_config(GOOD, ["sae.layer=3", "method.beta=1e-9", "data.inner.known=2", "model.path='1e-4'"], SCHEMAS)
    assert load_config(yaml.safe_load(to_yaml(config)), (), SCHEMAS) == config


def test_everything_wrong_is_reported_together(write):
    path = write(
        {
            "name": "x",
            "seeds": 1,
            "data": {"source": "file", "batch": {"forgt": 3, "retain": 0}, "max_length": 1},
            "method": {"name": "push", "betta": 1, "beta": -1, "mode": "sof"},
            "optim": {"lr": "high", "steps": -2, "clip": -1, "betas": [1, "x"]},
            "sae": {"max_fvu": 2},
            "model": 7,
        }
    )
    found = problems(path, ["seed=1.5", "optim.warmup=3", "nonsense"])
    assert found == [
        "command line: expected key=value, such as optim.lr=1e-4; found 'nonsense'.",
        "run.yaml: seeds is not a known key. Did you mean 'seed'?",
        "run.yaml: data.batch.forgt is not a known key. Did you mean 'data.batch.forget'?",
        "run.yaml: method.betta is not a known key. Did you mean 'method.beta'?",
        "run.yaml: method.mode must be one of hard, soft; found 'sof'. Did you mean 'soft'?",
        "run.yaml: optim.lr must be a number (float); found 'high'.",
        "run.yaml: optim.betas must be a list (list[float]); found [1, x].",
        "run.yaml: model must be a section of keys; found 7.",
        "command line: seed must be a whole number (int); found 1.5.",
        "command line: optim.warmup is not a known key. Did you mean 'optim.warmup_steps'?",
        "run.yaml: data.batch.retain must be >= 1; found 0.",
        "run.yaml: data.path must be set to a text (str) (the file); found nothing.",
        "run.yaml: data.max_length must be >= 2; found 1.",
        "run.yaml: sae.max_fvu must be in (0, 1]; found 2.0.",
        "run.yaml: method.beta must be > 0; found -1.0.",
        "run.yaml: optim.steps must be >= 0; found -2.",
        "run.yaml: optim.clip must be >= 0; found -1.0.",
    ]


def test_a_range_error_names_where_the_value_was_set(write):
    assert problems(write({**GOOD, "optim": {"lr": 1}}), ["optim.lr=-1"]) == ["command line: optim.lr must be > 0; found -1.0."]


def test_a_failed_check_may_break_what_comes_after_it():
    assert problems({**GOOD, "data": {"source": "share", "groups": 0}}) == ["data.groups must be >= 1; found 0."]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tracking.enabled=perhaps", "must be true or false (bool); found 'perhaps'."),
        ("sae.layer=x", "must be a whole number (int) or null; found 'x'."),
        ("out=null", "must be a text (str); found null."),
        ("method.weights=3", "must be a mapping (dict[str, float]); found 3."),
        ("model.trainable.modules=a", "must be a list (list[str]); found 'a'."),
        ("optim.lr=true", "must be a number (float); found true."),
    ],
)
def test_types_in_words(override, expected):
    assert problems(GOOD, [override]) == [f"command line: {override.split('=')[0]} {expected}"]


def test_unknown_plugins_are_named_with_a_suggestion(write):
    found = problems(write({"name": "a", "data": {"source": "fil", "x": 1}, "method": {"name": "psh", "beta": 1}}))
    assert found == [
        "run.yaml: data.source must name a known one (file, share); found 'fil'. Did you mean 'file'?",
        "run.yaml: method.name must name a known one (push, plain); found 'psh'. Did you mean 'push'?",
    ]


def test_a_key_of_another_plugin_is_refused(write):
    found = problems(write({**GOOD, "method": {"name": "push", "beta": 1}}), ["method.name=plain"])
    assert found == ["run.yaml: method.beta is not a known key. Known keys here: name."]


def test_mandatory_keys():
    found = problems({"optim": {"lr": -1}})
    assert [p.split(" ")[0] for p in found] == ["name", "data.source", "method.name", "optim.lr"]
    assert found[0] == "name must be set to a text (str) (name of the run; it is kept in <out>/<name>); found nothing."


def test_a_key_at_the_wrong_level_is_found():
    assert problems(GOOD, ["lr=1"]) == ["command line: lr is not a known key. Did you mean 'optim.lr'?"]
    assert problems({**GOOD, "optim.lr": 1}) == ["optim.lr is not a known key. Keys of sections are nested, one level to a line."]


def test_all_unreadable_files_are_reported(write):
    found = problems([write("a: [", "a.yaml"), "b.yaml"], ["x"])
    assert len(found) == 3
    assert [p.split(":")[0] for p in found] == ["a.yaml", "b.yaml", "command line"]


STUDY = {
    "study": "s",
    "common": {"data": {"source": "file", "path": "p"}, "method": {"name": "push"}, "optim": {"steps": 5}},
    "runs": {"one": None, "two": {"optim": {"steps": 6}, "method": {"beta": 2}}},
}


def test_a_study_is_its_runs(write):
    one, two = load_study(write(STUDY), ["seed=4"], SCHEMAS)
    assert (one.name, two.name) == ("s/one", "s/two")
    assert (one.optim.steps, two.optim.steps, one.method.beta, two.method.beta) == (5, 6, 0.1, 2.0)
    assert one.seed == two.seed == 4


def test_files_before_and_after_a_study_go_under_and_over_it(write):
    runs = load_study([{"optim": {"steps": 1, "lr": 3.0}}, write(STUDY), {"optim": {"clip": 9}}], (), SCHEMAS)
    assert [(r.optim.steps, r.optim.lr, r.optim.clip) for r in runs] == [(5, 3.0, 9.0), (6, 3.0, 9.0)]


def test_a_study_can_be_renamed_but_not_its_runs(write):
    path = write(STUDY)
    assert [r.name for r in load_study(path, ["study=t"], SCHEMAS)] == ["t/one", "t/two"]
    assert problems(path, ["name=x"], load_study) == [
        "command line: name must not be set for a study, whose runs have names of their own; study=NAME renames it."
    ]


def test_a_run_file_is_a_study_of_one(write):
    assert [r.name for r in load_study(write(GOOD), (), SCHEMAS)] == ["a"]


def test_problems_of_all_runs_come_together_and_once(write):
    study = {
        "study": "s",
        "comon": {},
        "common": {"data": {"source": "file"}, "method": {"name": "push"}, "optim": {"lrr": 1}},
        "runs": {"one": {"optim": {"lr": -1}}, "two": {"optim": {"lr": -2}, "name": "z"}, "three": 3},
    }
    assert problems(write(study), (), load_study) == [
        "run.yaml: comon is not a known key of a study. Did you mean 'common'?",
        "run.yaml: runs.two.name must not be set; a run is named <study>/<its key under runs>.",
        "run.yaml: runs.three must be a mapping of keys; found 3.",
        "run.yaml: common.optim.lrr is not a known key. Did you mean 'common.optim.lr'?",
        "run.yaml: data.path must be set to a text (str) (the file); found nothing.",
        "run.yaml: runs.one.optim.lr must be > 0; found -1.0.",
        "run.yaml: runs.two.optim.lr must be > 0; found -2.0.",
    ]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"study": "s"}, "run.yaml: runs must be a mapping of run names to settings, with at least one run; found None."),
        ({"study": "s", "runs": {}}, "run.yaml: runs must be a mapping of run names to settings, with at least one run; found {}."),
        ({"runs": {"a": GOOD["method"]}}, "run.yaml: study must be the study's name, a text (str); found None."),
        ({**STUDY, "common": [1]}, "run.yaml: common must be a mapping of keys; found [1]."),
        ({**STUDY, "seed": 1}, "run.yaml: seed is not a known key of a study. Settings of every run belong under 'common'."),
    ],
)
def test_malformed_studies(write, tree, message):
    assert message in problems(write(tree), (), load_study)


def test_one_study_at_a_time(write):
    assert problems([write(STUDY), write(STUDY, "b.yaml")], (), load_study) == [
        "b.yaml: expected at most one study file; found a second one beside run.yaml."
    ]
    assert problems(write(STUDY)) == ["run.yaml: expected one run; found a study of several (key 'runs')."]


def test_no_file_at_all():
    assert problems([]) == ["expected at least one configuration file; found none."]
