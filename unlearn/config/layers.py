"""Where configuration comes from: YAML files, mappings and ``key=value`` overrides, each read into a plain tree that knows its origin."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearn.errors import ConfigError, did_you_mean

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Layer:
    """Settings from one origin; a later layer wins. ``prefix`` is where they stand in their file, for example ``runs.base.``."""

    tree: Mapping[str, Any]
    label: str = ""
    prefix: str = ""

    def problem(self, key: str, text: str) -> str:
        """One sentence about ``key`` that starts with its origin."""
        return f"{self.label}: {self.prefix}{key} {text}" if self.label else f"{self.prefix}{key} {text}"


def read_file(path: str | Path) -> Layer:
    """Read one YAML file.

    Raises:
        ConfigError: there is no such file, it is not valid YAML (the message gives the line), or it holds no mapping.
    """
    path = Path(path)
    label = str(path)
    if path.is_dir():
        raise ConfigError(f"{label} is a folder; expected a YAML file.{did_you_mean('config.yaml', [p.name for p in path.glob('*.yaml')])}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{label}: there is no such file; expected a YAML file.{did_you_mean(path.name, near)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{label}: expected a readable YAML file in UTF-8; found {type(error).__name__}.") from error
    value = _parse(text, label)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label}: expected a mapping of keys; found {'a list' if isinstance(value, list) else 'a single text'}.")
    return Layer(value, label)


def read_override(text: str) -> Layer:
    """Read ``key=value``, the value by YAML's rules (``seed=1``, ``optim.betas=[0.9,0.95]``, ``sae.layer=null``).

    Raises:
        ConfigError: there is no ``=``, the key is empty or has an empty part, or the value is not valid YAML.
    """
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{COMMAND_LINE}: expected key=value, such as optim.lr=1e-4; found {text!r}.")
    holder = _parse(f"value: {value}", f"{COMMAND_LINE}: {key}")
    if not isinstance(holder, Mapping) or set(holder) != {"value"}:
        raise ConfigError(f"{COMMAND_LINE}: {key} expected one YAML value; found {value!r}.")
    tree: Any = holder["value"]
    for part in reversed(parts):
        tree = {part: tree}
    return Layer(tree, COMMAND_LINE)


def read_any(source: str | Path | Mapping[str, Any] | Layer) -> Layer:
    """A layer as it is, a mapping, or the YAML file at a path."""
    if isinstance(source, Layer):
        return source
    if isinstance(source, Mapping):
        return Layer(source)
    return read_file(source)


def _parse(text: str, label: str) -> Any:
    """OmegaConf's YAML (``1e-4`` is a number, a repeated key is an error) as plain containers, interpolations unresolved."""
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{label}:{mark.line + 1}" if mark is not None and not label.startswith(COMMAND_LINE) else label
        raise ConfigError(f"{where}: expected valid YAML; the parser reports: {error.problem or error.context}.") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{label}: expected valid YAML; the parser reports: {str(error).splitlines()[0]}.") from None
