"""The files of a comparison. What has its file is done; nothing else is asked when a comparison goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.fingerprint import diff
from unlearn.errors import RunError
from unlearn.tracking.files import dump_json, read_json, write_atomic

if TYPE_CHECKING:
    from unlearn.comparison.plan import Plan

STUDY, SUMMARY, TUNING = "study.json", "summary.json", "tuning"
DIGITS = 6
"""Significant digits of a number in a file: enough, and steady in git."""


class Ledger:
    """``study.json``, ``tuning/METHOD.json``, ``METHOD-seedN.json`` and ``summary.json`` in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tuning_path(self, method: str) -> Path:
        """File of a method's tuning."""
        return self.folder / TUNING / f"{method}.json"

    def test_path(self, method: str, seed: int) -> Path:
        """File of a method's test with one seed."""
        return self.folder / f"{method}-seed{seed}.json"

    def open(self, plan: Plan) -> None:
        """Note what is compared, or check that it is what the files here were made with.

        Raises:
            RunError: it is not; the message names the first key that differs.
        """
        path, wanted = self.folder / STUDY, plain_numbers(plan.settings())
        kept = read_json(path)
        if not kept:
            write_atomic(path, text_of(wanted))
            return
        for key, there, asked in diff(kept, wanted):
            raise RunError(f"{key} must be {there!r} as in {path}, whose results would be mixed; found {asked!r}. Take another --ledger.")

    def tuning(self, method: str) -> dict[str, Any]:
        """A method's tuning; empty where it is not there."""
        return read_json(self.tuning_path(method))

    def test(self, method: str, seed: int) -> dict[str, Any]:
        """A method's test with one seed; empty where it is not there."""
        return read_json(self.test_path(method, seed))

    def write(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write a file whole, its numbers rounded."""
        write_atomic(path, text_of(plain_numbers(record)))

    def missing(self, plan: Plan) -> tuple[list[str], list[tuple[str, int]]]:
        """(methods to tune, tests to make), in the order of the plan."""
        tune = [method for method in plan.methods if plan.tuned(method) and not self.tuning(method)]
        return tune, [(method, seed) for method in plan.methods for seed in plan.seeds if not self.test(method, seed)]


def text_of(record: Mapping[str, Any]) -> str:
    """JSON text, one key a line."""
    return dump_json(record, indent=1) + "\n"


def plain_numbers(value: Any) -> Any:
    """``value`` with its numbers rounded to ``DIGITS`` significant digits and its mappings and lists as JSON has them.

    >>> plain_numbers({"a": (1 / 3, 2)})
    {'a': [0.333333, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(item) for item in value]
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return float(f"{value:.{DIGITS}g}")
    return value
