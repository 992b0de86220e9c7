import pytest

from unlearn.config.layers import Layer, read_any, read_file, read_override
from unlearn.errors import ConfigError


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_keeps_its_name(tmp_path):
    path = write(tmp_path, "optim: {lr: 1e-4}\nsae:\n")
    layer = read_file(path)
    assert layer.tree == {"optim": {"lr": 1e-4}, "sae": None}
    assert layer.problem("optim.lr", "is odd.") == f"{path}: optim.lr is odd."


def test_an_empty_file_sets_nothing(tmp_path):
    assert read_file(write(tmp_path, "# nothing\n")).tree == {}


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write(tmp_path, "", "quickstart.yaml")
    with pytest.raises(
        ConfigError, match=r"quikstart\.yaml: there is no such file; expected a YAML file\. Did you mean 'quickstart\.yaml'\?"
    ):
        read_file(tmp_path / "quikstart.yaml")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: [1,\nc: 2\n", 4, "did not find expected"),
        ("a: 1\nb: x: y\n", 2, "mapping values are not allowed"),
        ("a: 1\nc: 2\na: 3\n", 3, "found duplicate key a"),
        ("a: 1\n\tb: 2\n", 2, "tab"),
    ],
)
def test_a_syntax_error_names_the_line(tmp_path, text, line, reason):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}:{line}: expected valid YAML; the parser reports: ")
    assert reason in str(error.value)


def test_a_list_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml: expected a mapping of keys; found a list\."):
        read_file(write(tmp_path, "- a\n- b\n"))


def test_a_single_number_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml: expected"):
        read_file(write(tmp_path, "7\n"))


def test_a_folder_is_no_configuration(tmp_path):
    write(tmp_path, "", "config.yaml")
    with pytest.raises(ConfigError, match=r"is a folder; expected a YAML file\. Did you mean 'config\.yaml'\?"):
        read_file(tmp_path)


def test_bytes_are_no_configuration(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"expected a readable YAML file in UTF-8"):
        read_file(path)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("seed=1", {"seed": 1}),
        ("data.batch.forget=8", {"data": {"batch": {"forget": 8}}}),
        ("optim.betas=[0.9,0.95]", {"optim": {"betas": [0.9, 0.95]}}),
        ("sae.layer=null", {"sae": {"layer": None}}),
        ("optim.lr=1e-4", {"optim": {"lr": 1e-4}}),
        ("optim={lr: 1, clip: 2}", {"optim": {"lr": 1, "clip": 2}}),
        ("model.path=a=b", {"model": {"path": "a=b"}}),
        ("tracking.enabled=false", {"tracking": {"enabled": False}}),
        ("data.answer_end=''", {"data": {"answer_end": ""}}),
        ("name=", {"name": None}),
        ("out=${oc.env:HOME}/x", {"out": "${oc.env:HOME}/x"}),
    ],
)
def test_overrides_follow_yaml(text, tree):
    assert read_override(text).tree == tree


@pytest.mark.parametrize("text", ["seed", "=1", "optim..lr=1", ".lr=1", "optim.=1", ""])
def test_a_malformed_override(text):
    with pytest.raises(ConfigError, match=r"^command line: expected key=value, such as optim\.lr=1e-4; found "):
        read_override(text)


@pytest.mark.parametrize("text", ["x=[1", "x={", "x=a: b: c", "x=1\ny: 2"])
def test_an_override_must_hold_one_value(text):
    with pytest.raises(ConfigError, match=r"^command line: x"):
        read_override(text)


def test_any_origin(tmp_path):
    path = write(tmp_path, "seed: 1")
    layer = Layer({"seed": 2}, "here")
    assert read_any(layer) is layer
    assert read_any({"seed": 3}).tree == {"seed": 3}
    assert read_any(str(path)).tree == {"seed": 1}
    assert read_any({"seed": 3}).problem("seed", "is odd.") == "seed is odd."
