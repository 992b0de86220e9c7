"""The README says what is true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.data.sources.fake_benchmarks import write_popqa
from tests.distributed.launchers import environment
from tests.lines import README, shell_lines
from tests.loaded import loaded
from tests.shell import Shell, looking_at
from unlearn.cli.readme import filled, update
from unlearn.config.benchmarks import benchmark_configs
from unlearn.config.layers import Layer
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.sweep import load_sweep
from unlearn.errors import UnlearnError
from unlearn.registry import entries
from unlearn.tracking.files import read_json

if TYPE_CHECKING:
    from tests.architectures import Hub


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


@pytest.fixture(scope="module")
def forks(small_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with loaded(environment(tmp_path_factory.mktemp("forks"), **looking_at(small_hub))) as variable:
        yield variable


@pytest.fixture
def shell(small_hub: Hub, forks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    write_popqa(tmp_path / "rows")
    return Shell(tmp_path, small_hub.need("gemma-2-2b", "llama-3.1-8b"), tmp_path / "rows", forks)


def finished(shell: Shell, name: str) -> int:
    """Processes that made the run ``name``, which has finished."""
    folder = shell.folder / "runs" / name
    assert read_json(folder / "status")["state"] == "finished"
    count: int = read_json(folder / "manifest.json")["processes"]["count"]
    return count


@pytest.mark.slow
def test_lines_for_one_card(shell: Shell) -> None:
    doctor, gemma, llama = shell_lines("One card of 24 GB")
    assert shell.here(doctor) == shell.here(gemma) == 0
    assert finished(shell, "popqa") == 1
    assert shell.here(llama) == 0
    assert finished(shell, "popqa_nf4") == 1


@pytest.mark.slow
def test_lines_for_eight_cards(shell: Shell) -> None:
    doctor, adapters, everything = shell_lines("Eight cards of 80 GB")
    assert shell.here(doctor) == 0
    for line, name in ((adapters, "popqa_8"), (everything, "popqa_full")):
        shell.started(line)
        assert finished(shell, name) == 2


@pytest.mark.slow
def test_lines_for_a_cluster(shell: Shell) -> None:
    doctor, job, *nodes = shell_lines("A cluster")
    assert shell.here(doctor) == 0
    shell.started(job)
    assert finished(shell, "popqa_16") == 2
    shell.started(*nodes)
    assert finished(shell, "popqa") == 2
    assert read_json(shell.folder / "runs" / "popqa" / "manifest.json")["processes"]["nodes"] == 2
