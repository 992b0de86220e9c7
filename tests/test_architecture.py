"""Rules about the package as a whole, read from its files."""

import ast
import importlib
import subprocess
import sys
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path

import pytest

from unlearn.config.document import docstrings, fields_of
from unlearn.config.load import load_config, load_study
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.registry import entries

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "unlearn"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted(p for pattern in ("configs/**/*.y*ml", "experiments/*/**/*.y*ml") for p in ROOT.glob(pattern))

LAYERS = (
    ("errors",),
    ("processes",),
    ("meeting",),
    ("types",),
    ("registry",),
    ("config",),
    ("functional",),
    ("tracking",),
    ("metrics", "data", "models"),
    ("world",),
    ("latents",),
    ("methods",),
    ("module",),
    ("evaluation",),
    ("callbacks", "attacks"),
    ("sharding",),
    ("launch",),
    ("assembly",),
    ("restore", "collect", "label", "estimate"),
    ("subject",),
    ("measuring", "attack_files", "export_files", "exported"),
    ("run", "benchmark", "attack", "export", "talk"),
    ("sweep",),
    ("comparison",),
    ("cli",),
    ("__main__",),
)
"""Bottom first. A part may import itself and what lies below it; parts of one layer do not import each other."""

RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
REPORT_READS = (
    "unlearn.tracking.reader",
    "unlearn.tracking.files",
    "unlearn.tracking.store",
    "unlearn.functional",
    "unlearn.config",
    "unlearn.errors",
    "unlearn.types",
)
"""Of ``tracking``, only what reads runs and knows file and store names: never a logger."""
READS_REPORT = RANK["callbacks"]
"""``report`` reads finished runs only; what is above the callbacks may call it."""


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path):
    """Full names of everything of this package that ``path`` imports, wherever in the file: ``unlearn.a.b`` or ``unlearn.a.b.Name``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return sorted(name for name in found if name.split(".")[0] == "unlearn")


def violations(path):
    part = name_of(path).split(".")[1] if "." in name_of(path) else None
    for name in imports(path):
        target = name.split(".")[1]
        if target.startswith("__") or part is None or target == part:
            continue
        if part == "report":
            allowed = any(name == start or name.startswith(f"{start}.") for start in REPORT_READS)
        elif target == "report":
            allowed = RANK[part] > READS_REPORT
        else:
            allowed = RANK[target] < RANK[part]
        if not allowed:
            yield f"{path.relative_to(ROOT)} must not import {name}"


def test_every_part_has_its_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__", "__main__"}
    assert parts - {"report"} <= set(RANK)


def test_imports_go_downwards():
    assert [line for path in MODULES for line in violations(path)] == []


def test_the_import_rule_sees_a_violation(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "unlearn" / "metrics" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from unlearn.errors import DataError\ndef f():\n    from unlearn.data.tokenize import collate\n    import unlearn.run\n"
    )
    assert list(violations(path)) == [
        "unlearn/metrics/bad.py must not import unlearn.data.tokenize.collate",
        "unlearn/metrics/bad.py must not import unlearn.run",
    ]


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*")) if p.suffix in (".py", ".css", ".html", ".js")],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_can_be_imported(path):
    assert importlib.import_module(name_of(path)).__doc__


HEAVY = (
    "torch",
    "lightning",
    "pytorch_lightning",
    "sae_lens",
    "transformers",
    "mlflow",
    "peft",
    "optuna",
    "sklearn",
    "matplotlib",
    "datasets",
)


@pytest.mark.parametrize("words", [None, ["--help"], ["run", "--help"], ["list"], ["list", "methods"]], ids=str)
def test_light_commands_load_nothing_heavy(words):
    call = "" if words is None else f"\ntry:\n    unlearn.cli.main({words!r})\nexcept SystemExit as e:\n    assert not e.code, e.code"
    code = f"import sys, unlearn.cli{call}\nsys.exit(' '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "module", ["unlearn", "unlearn.registry", "unlearn.types", "unlearn.errors", "unlearn.config.load", "unlearn.config.fingerprint"]
)
def test_the_base_loads_nothing_heavy(module):
    code = f"import sys, {module}\nsys.exit(' '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def dataclasses_below(cls):
    yield cls
    for info in fields_of(cls):
        if info.section is not None:
            yield from dataclasses_below(info.section)


def config_dataclasses():
    schemas = plugin_schemas()
    roots = [RunConfig, *(schemas["method"](n) for n in entries("method")), *(schemas["data"](n) for n in entries("source"))]
    return list(dict.fromkeys(cls for root in roots for cls in dataclasses_below(root)))


def test_every_configuration_field_is_documented():
    classes = config_dataclasses()
    assert RunConfig in classes
    missing = [
        f"{cls.__module__}.{cls.__qualname__}.{name}"
        for cls in {base for c in classes for base in c.__mro__ if is_dataclass(base)}
        for name in vars(cls).get("__annotations__", {})
        if not docstrings(cls).get(name) and not str(vars(cls)["__annotations__"][name]).startswith("ClassVar")
    ]
    assert missing == []


def test_every_configuration_class_says_what_it_is():
    assert [cls.__qualname__ for cls in config_dataclasses() if (cls.__doc__ or "").startswith(f"{cls.__name__}(") or not cls.__doc__] == []


PRESET_BASE = {"name": "preset", "data": {"source": "world"}, "method": {"name": "none"}}


def test_there_are_configurations():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_configuration_loads(path):
    """A file that names no run or no method is a preset, to be laid over another one."""
    import yaml

    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if "maker" in tree:
        from unlearn.collect import collect_config

        assert collect_config(tree["maker"]["name"], path).maker.name == tree["maker"]["name"]
        return
    if "sweep" in tree:
        from unlearn.config.sweep import load_sweep

        spec = load_sweep(path)
        assert (spec.trials > 0, spec.name) == (True, tree["sweep"])
        return
    if "attack" in tree:
        from unlearn.config.attacks import attack_settings, separate

        own, others = separate([path], [])
        assert attack_settings("full", own)
        assert {"attack", *(key for layer in others for key in layer.tree)} == set(tree)
        if "spaces" in tree:
            from unlearn.comparison import read_plan

            plan = read_plan([path], [], methods=["none", *tree["spaces"]], trials=1, seeds=[0])
            assert plan.sweep(next(iter(tree["spaces"])))["search"].items() >= next(iter(tree["spaces"].values())).items()
            return
        load_config([PRESET_BASE, *others])
        return
    whole = "study" in tree or {"name", "method"} <= tree.keys()
    runs = load_study(path if whole else [PRESET_BASE, path])
    assert runs
    assert len({run.name for run in runs}) == len(runs)
