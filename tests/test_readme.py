"""The README says what is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unlearn.cli.readme import filled, update
from unlearn.config.benchmarks import benchmark_configs
from unlearn.config.layers import Layer
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.sweep import load_sweep
from unlearn.errors import UnlearnError
from unlearn.registry import entries

README = Path(__file__).parents[1] / "README.md"


def test_generated_parts_are_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text


def test_an_old_table_is_noticed_and_replaced(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text(encoding="utf-8").replace("gradient_ascent`", "gradient_descent`"), encoding="utf-8")
    with pytest.raises(UnlearnError, match="make docs"):
        update(copy, check=True)
    update(copy, check=False)
    assert "gradient_descent`" not in copy.read_text(encoding="utf-8")
    for name in entries("method"):
        assert f"`{name}`" in copy.read_text(encoding="utf-8")


def test_missing_marks_are_named() -> None:
    with pytest.raises(UnlearnError, match="<!-- methods -->"):
        filled("nothing here")


def test_yaml_in_the_readme_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    (tmp_path / "my.yaml").write_text("data: {source: world}\n")
    monkeypatch.chdir(tmp_path)

    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    trees = [yaml.safe_load(block) for block in blocks]
    assert any("benchmarks" in tree for tree in trees)
    for tree in trees:
        if "benchmarks" in tree:
            assert benchmark_configs(tmp_path, sources=[tree])
        elif "sweep" in tree:
            assert load_sweep(tree).name == tree["sweep"]
        else:
            load_config(Layer(tree), (), plugin_schemas())


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", README.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_that_the_readme_links_to_exist() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text(encoding="utf-8")):
        if link.startswith("#"):
            assert f"## {link[1:].capitalize()}\n" in README.read_text(encoding="utf-8"), link
            continue
        assert (README.parent / link).exists(), link
