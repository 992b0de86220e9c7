"""From layers of plain settings to typed objects, noting every problem on the way instead of stopping at the first."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearn.config.checks import collected
from unlearn.config.document import FieldInfo, fields_of, is_union, show, type_name
from unlearn.config.layers import Layer
from unlearn.errors import ConfigError, did_you_mean

SELECTORS: Mapping[str, str] = {"data": "source", "method": "name", "method.inner": "name"}
"""Plug-in sections, and the key in each that names the plug-in which types it; a dotted one is a field of another plug-in."""

Schemas = Mapping[str, Callable[[str], type]]
"""For a plug-in section, what turns a plug-in's name into its dataclass; raises ``ConfigError`` for a name that is not known."""

WORDS: Mapping[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    tuple: "a list",
}


@cache
def _one_field(hint: Any) -> DictConfig:
    return typing.cast(DictConfig, OmegaConf.structured(dataclasses.make_dataclass("Value", [("value", hint, MISSING)])))


def convert(hint: Any, value: Any) -> Any:
    """``value`` as OmegaConf converts it to ``hint``; ``ValueError`` where it does not fit."""
    try:
        return typing.cast(Any, OmegaConf.to_object(OmegaConf.merge(_one_field(hint), {"value": value}))).value
    except (OmegaConfBaseException, TypeError) as error:
        raise ValueError(str(error)) from error


def expectation(hint: Any) -> str:
    """A type in words: ``a number (float)``, ``a text (str) or null``, ``one of a, b``."""
    if is_union(hint):
        return " or ".join("null" if a is type(None) else expectation(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(show(a) for a in typing.get_args(hint))
    words = WORDS.get(typing.get_origin(hint) or hint)
    return f"{words} ({type_name(hint)})" if words else type_name(hint)


def _interpolated(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_interpolated(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_interpolated(v) for v in value)
    return isinstance(value, str) and "${" in value


class Reading:
    """What the layers say, key by key.

    ``values`` are converted values by full key, ``said`` the layer that set each, ``problems`` one sentence for everything wrong.
    """

    def __init__(self, root: type, layers: list[Layer], schemas: Schemas) -> None:
        self.root = root
        self.layers = layers
        self.values: dict[str, Any] = {}
        self.said: dict[str, Layer] = {}
        self.problems: list[str] = []
        self.hints: dict[str, Any] = {}
        self.sections: dict[str, type | None] = {}
        for key in SELECTORS:
            if key in schemas and self._has(key):
                self.sections[key] = self._plugin(key, schemas[key]) or self._default(key)
        for layer in layers:
            self._walk(root, layer.tree, "", layer)
        self._interpolate()

    def _inner(self, section: str) -> FieldInfo | None:
        """The field behind a dotted plug-in section; None for one of the root, and where the plug-in around it has no such field."""
        outer, _, name = section.rpartition(".")
        cls = self.sections.get(outer) if outer else None
        return next((info for info in fields_of(cls) if info.name == name), None) if cls is not None else None

    def _has(self, section: str) -> bool:
        return "." not in section or self._inner(section) is not None

    def _default(self, section: str) -> type | None:
        """Type of a dotted section that no layer names: its default's."""
        info = self._inner(section)
        return (
            type(info.default)
            if info is not None and info.section is not None and f"{section}.{SELECTORS[section]}" not in self.said
            else None
        )

    def _plugin(self, section: str, lookup: Callable[[str], type]) -> type | None:
        """Dataclass of the plug-in that ``section`` names; None where it names none, or one that is not known."""
        for layer in reversed(self.layers):
            settings: Any = layer.tree
            for part in section.split("."):
                settings = settings.get(part) if isinstance(settings, Mapping) else None
            if isinstance(settings, Mapping) and settings.get(SELECTORS[section]) is not None:
                try:
                    return lookup(str(settings[SELECTORS[section]]))
                except ConfigError as error:
                    self.problems += [layer.problem(p, "").rstrip() for p in error.problems]
                    self.said[f"{section}.{SELECTORS[section]}"] = layer
                    return None
        return None

    def _type(self, key: str, info: FieldInfo) -> type | None:
        return self.sections.get(key, info.section)

    def _walk(self, cls: type, tree: Mapping[str, Any], path: str, layer: Layer) -> None:
        infos = {info.name: info for info in fields_of(cls)}
        for name, value in tree.items():
            key = f"{path}{name}"
            if name not in infos:
                self.problems.append(layer.problem(key, f"is not a known key.{self._suggest(str(name), path, list(infos), layer)}"))
            elif infos[name].section is None:
                self._leaf(infos[name], key, value, layer)
            else:
                self._section(infos[name], key, value, layer)

    def _section(self, info: FieldInfo, key: str, value: Any, layer: Layer) -> None:
        cls = self._type(key, info)
        if isinstance(value, Mapping):
            if cls is not None:
                self._walk(cls, value, f"{key}.", layer)
        elif value is not None:
            self.problems.append(layer.problem(key, f"must be a section of keys; found {show(value)}."))

    def _leaf(self, info: FieldInfo, key: str, value: Any, layer: Layer) -> None:
        self.said[key] = layer
        self.hints[key] = info.hint
        if _interpolated(value):
            self.values[key] = value
            return
        if isinstance(value, Mapping) and isinstance(before := self.values.get(key, info.default), Mapping):
            value = {**before, **value}
        self._set(key, value)

    def _set(self, key: str, value: Any) -> None:
        hint = self.hints[key]
        try:
            self.values[key] = convert(hint, value)
        except ValueError:
            self.values.pop(key, None)
            close = (
                did_you_mean(value, [str(a) for a in typing.get_args(hint)])
                if isinstance(value, str) and typing.get_origin(hint) is Literal
                else ""
            )
            found = repr(value) if isinstance(value, str) else show(value)
            self.problems.append(self.said[key].problem(key, f"must be {expectation(hint)}; found {found}.{close}"))

    def _suggest(self, name: str, path: str, siblings: list[str], layer: Layer) -> str:
        """The closest sibling, else a key of exactly that name elsewhere, else the keys there are."""
        if "." in name:
            return " Keys of sections are nested, one level to a line."
        near = [f"{path}{close}" for close in get_close_matches(name, siblings, n=1)]
        near += [key for key in self._keys(self.root, "") if key.rsplit(".", 1)[-1] == name]
        return f" Did you mean '{layer.prefix}{near[0]}'?" if near else f" Known keys here: {', '.join(siblings)}."

    def _keys(self, cls: type, path: str) -> Iterator[str]:
        for info in fields_of(cls):
            key = f"{path}{info.name}"
            yield key
            section = self._type(key, info) if info.section else None
            if section is not None:
                yield from self._keys(section, f"{key}.")

    def _interpolate(self) -> None:
        """Replace ``${key}`` and ``${oc.env:NAME}`` by what they stand for, defaults included."""
        pending = [key for key, value in self.values.items() if _interpolated(value)]
        if not pending:
            return
        tree = OmegaConf.create(self._plain(self.root, "", None))
        for key in pending:
            try:
                value = OmegaConf.select(tree, key, throw_on_resolution_failure=True)
                self._set(key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0].rstrip(".")
                self.problems.append(
                    self.said[key].problem(key, f"must refer to something that exists; found {self.values.pop(key)!r} ({reason}).")
                )

    def _children(self, cls: type, path: str, base: Any) -> Iterator[tuple[FieldInfo, str, type | None, Any]]:
        """(field, full key, dataclass of a section that is present, value: set, of ``base``, or default) of each field."""
        for info in fields_of(cls):
            key = f"{path}{info.name}"
            default = getattr(base, info.name) if base is not None else info.default
            if info.section is None:
                yield info, key, None, self.values.get(key, copy(default))
                continue
            section = self._type(key, info)
            wanted = default is not None or any(k.startswith(f"{key}.") for k in self.said)
            yield info, key, section if wanted else None, default if type(default) is section else None

    def _plain(self, cls: type, path: str, base: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for info, key, section, value in self._children(cls, path, base):
            tree[info.name] = self._plain(section, f"{key}.", value) if section is not None else value
        return tree

    def build(self) -> Any:
        """The typed object.

        Raises:
            ConfigError: everything that is wrong, in one error.
        """
        built = self._build(self.root, "", None)
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))
        return built

    def _build(self, cls: type, path: str, base: Any) -> Any:
        arguments: dict[str, Any] = {}
        for info, key, section, value in self._children(cls, path, base):
            if section is not None:
                arguments[info.name] = self._build(section, f"{key}.", value)
            elif key in self.sections:
                self._missing(f"{key}.{SELECTORS[key]}", info.section)
            elif isinstance(value, str) and value == MISSING:
                self._missing(key, cls)
            else:
                arguments[info.name] = value
        return self._construct(cls, path, arguments)

    def _missing(self, key: str, owner: type | None) -> None:
        """Note a key that has no value, unless its value was already found wrong."""
        if key in self.said:
            return
        info = next((i for i in fields_of(owner) if i.name == key.rsplit(".", 1)[-1]), None) if owner else None
        label = self.layers[0].label if self.layers else ""
        text = f" ({info.text})" if info is not None and info.text else ""
        expected = expectation(info.hint) if info is not None else "a value"
        self.problems.append(Layer({}, label).problem(key, f"must be set to {expected}{text}; found nothing."))

    def _construct(self, cls: type, path: str, arguments: dict[str, Any]) -> Any:
        """An instance of ``cls``, whose own range checks are collected; None where something mandatory is missing."""
        required = {info.name for info in fields_of(cls) if info.required}
        if not required <= arguments.keys():
            arguments |= dict.fromkeys(required - arguments.keys(), MISSING)
        built = None
        with collected() as found:
            try:
                built = cls(**arguments)
            except ConfigError as error:
                found += error.problems
            except Exception:  # what follows from a problem that was noted is no news
                if not found and not self.problems:
                    raise
        outer = path.split(".", 1)[0] + "."
        for problem in found:
            if path.count(".") > 1 and problem.startswith(outer) and not problem.startswith(path):
                problem = path + problem.removeprefix(outer)  # a plug-in inside another one states its keys as if it stood alone
            key = problem.split(" ", 1)[0]
            if arguments.get(key.removeprefix(path)) != MISSING:
                self.problems.append(self.said.get(key, Layer({})).problem(problem, "").rstrip())
        return built
