"""Command line words into configurations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from unlearn.config.layers import Layer
from unlearn.config.load import load_study
from unlearn.config.schema import RunConfig
from unlearn.errors import ConfigError, did_you_mean


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files, overrides), each in order.

    A word with ``=`` that is no file is an override. Any other is a file if it stands first, exists, or looks like a path; what is left
    counts as an override and is refused as such.

    >>> split(["run.yaml", "seed=1", "more.yml", "sed"])
    (['run.yaml', 'more.yml'], ['seed=1', 'sed'])
    """
    files: list[str] = []
    overrides: list[str] = []
    for word in words:
        like_a_path = word == words[0] or os.sep in word or word.endswith((".yaml", ".yml"))
        is_file = Path(word).exists() if "=" in word else like_a_path or Path(word).exists()
        (files if is_file else overrides).append(word)
    return files, overrides


def load(words: Sequence[str], only: Sequence[str] = ()) -> list[RunConfig]:
    """The runs that ``words`` describe; files are laid over each other, a later one wins. Without a file, overrides must say everything.

    Args:
        words: files and overrides.
        only: patterns of run names (``npo*``), with or without their study; empty keeps all.

    Raises:
        ConfigError: something is wrong, or a pattern fits no run.
    """
    files, overrides = split(words)
    if not words:
        raise ConfigError("expected a configuration file, such as unlearn run configs/quickstart.yaml; found none.")
    runs = load_study(list(files) or Layer({}), overrides)
    names = {run.name: run.name.rsplit("/", 1)[-1] for run in runs}
    unused = [p for p in only if not any(fnmatchcase(name, p) or fnmatchcase(short, p) for name, short in names.items())]
    if unused:
        short = list(names.values())
        raise ConfigError([f"--only must fit a run ({', '.join(short)}); found {p!r}.{did_you_mean(p, short)}" for p in unused])
    return [run for run in runs if not only or any(fnmatchcase(run.name, p) or fnmatchcase(names[run.name], p) for p in only)]
