"""One configuration for each benchmark that a model is measured on, from files and overrides that are shared.

``benchmarks`` names them, each a ``data`` section; a name that is not there is that of a data source with its defaults::

    benchmarks:
      authors: {source: tofu, root: tofu/}
      mine: {source: jsonl, path: rows.jsonl}
    evaluation: {batch_size: 64}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unlearn.config.layers import Layer, read_any, read_override
from unlearn.config.load import STUDY_KEYS, Origin, load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.errors import ConfigError, did_you_mean
from unlearn.registry import entries, find

SECTION = "benchmarks"
OF_TRAINING = ("name", "out", "method", "optim", "tracking")
"""Sections of a run that say nothing about how a model is measured; they are left out."""


def benchmark_configs(
    folder: Path,
    names: Sequence[str] = (),
    sources: Sequence[Origin] = (),
    overrides: Sequence[str] = (),
    *,
    own: Layer | None = None,
    model: str | None = None,
) -> dict[str, RunConfig]:
    """The configuration of each benchmark, by its name; results belong into ``<folder>/<name>``.

    ``data`` belongs to the benchmarks of the source that it names, and to all where it names none.

    Args:
        folder: where the results of the model are kept.
        names: keys of ``benchmarks`` or data sources; none takes every key of ``benchmarks``, else the source of ``data``.
        sources: YAML files or mappings, a later one wins; whole configurations of runs will do.
        overrides: ``key=value`` texts, they win.
        own: configuration of the run that is measured; everything else wins over it.
        model: directory or hub id that is measured, in the place of ``model.path``.

    Raises:
        ConfigError: a benchmark that is not known, a section for a source that is not measured, and what ``load_config`` finds wrong.
    """
    given = _read(sources, overrides)
    layers = [*([] if own is None else [own]), *given]
    sections = _sections(layers)
    data_source = _data_source(layers)
    chosen = list(dict.fromkeys(names)) or list(sections) or ([data_source] if data_source else [])
    if not chosen:
        raise ConfigError("--benchmark must name a data source or a key of `benchmarks`; found none. `unlearn list sources` shows them.")
    kinds = {name: _source_of(name, sections) for name in chosen}
    said = _data_source(given)
    if said is not None and said not in kinds.values():
        raise ConfigError(
            f"data.source must be that of a benchmark ({', '.join(kinds.values())}); found {said!r}. Give --benchmark {said}."
        )
    default = said or (data_source if data_source in kinds.values() else None)
    place = [] if model is None else [Layer({"model": {"path": model}})]
    built: dict[str, RunConfig] = {}
    problems: list[str] = []
    for name, source in kinds.items():
        shared = [layer if (_data_source([layer]) or default) in (None, source) else _without(layer, "data") for layer in layers]
        last = Layer({"name": f"{folder.name}/{name}", "out": str(folder.parent), "data": {"source": source}, "method": {"name": "none"}})
        stack = [*(_without(layer, SECTION, *OF_TRAINING) for layer in shared), *sections.get(name, ()), *place, last]
        try:
            built[name] = load_config(stack, (), plugin_schemas())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return built


def _read(sources: Sequence[Origin], overrides: Sequence[str]) -> list[Layer]:
    layers: list[Layer] = []
    problems: list[str] = []
    for read in (*(partial(read_any, item) for item in sources), *(partial(read_override, text) for text in overrides)):
        try:
            layers.append(read())
        except ConfigError as error:
            problems += error.problems
    problems += [
        layer.problem(key, "must not be set to measure a model; expected settings of one run or of benchmarks, found a study.")
        for layer in layers
        for key in STUDY_KEYS
        if key in layer.tree
    ]
    if problems:
        raise ConfigError(problems)
    return layers


def _sections(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """What each benchmark is called, and the layers of its ``data`` section."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        benchmarks = layer.tree.get(SECTION) or {}
        if not isinstance(benchmarks, Mapping):
            raise ConfigError(layer.problem(SECTION, f"must be a mapping of names to data sections; found {benchmarks!r}."))
        for name, tree in benchmarks.items():
            if tree is not None and not isinstance(tree, Mapping):
                raise ConfigError(layer.problem(f"{SECTION}.{name}", f"must be a data section; found {tree!r}."))
            label = f"{layer.label}, {SECTION}.{name}" if layer.label else f"{SECTION}.{name}"
            found.setdefault(str(name), []).append(Layer({"data": dict(tree or {})}, label))
    return found


def _data_source(layers: Sequence[Layer]) -> str | None:
    """The source that ``data`` names, over all layers."""
    named = [layer.tree["data"].get("source") for layer in layers if isinstance(layer.tree.get("data"), Mapping)]
    return next((str(name) for name in reversed(named) if name is not None), None)


def _source_of(name: str, sections: Mapping[str, Sequence[Layer]]) -> str:
    known = [*sections, *(source for source in entries("source") if source not in sections)]
    if name not in known:
        raise ConfigError(f"--benchmark must be one of {', '.join(known)}; found {name!r}.{did_you_mean(name, known)}")
    named: list[Any] = [layer.tree["data"].get("source") for layer in sections.get(name, ())]
    source = next((str(value) for value in reversed(named) if value is not None), name)
    find("source", source, f"{SECTION}.{name}.source")
    return source


def _without(layer: Layer, *keys: str) -> Layer:
    return Layer({key: value for key, value in layer.tree.items() if key not in keys}, layer.label, layer.prefix)
