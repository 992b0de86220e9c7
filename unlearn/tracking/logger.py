"""The Lightning logger that writes into the run directory."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from unlearn.tracking.rundir import RunDirectory

SKIPPED = frozenset({"epoch", "step"})
"""Metrics that Lightning adds by itself; the budget of a run is in steps, and every row has its step."""


class RunDirLogger(Logger):
    """Writes every logged metric to metrics.jsonl as a row {step, stage, key, value}, at once, so that a killed run keeps its rows.

    ``stage`` names what is going on (``train`` unless set) and may be changed at any time. The configuration is not written here:
    config.yaml holds it.
    """

    def __init__(self, run_dir: RunDirectory, stage: str = "train") -> None:
        super().__init__()
        self.run_dir = run_dir
        self.stage = stage
        self.latest: dict[str, float] = {}
        """the last value of every metric"""

    @property
    def name(self) -> str:
        """Empty: the run directory is the whole address, checkpoints included."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as ``name``."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.run_dir.path)

    @property
    def root_dir(self) -> str:
        """The run directory."""
        return str(self.run_dir.path)

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return str(self.run_dir.path)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append ``metrics`` at ``step`` (0 when none is given)."""
        kept = {key: value for key, value in metrics.items() if key not in SKIPPED}
        self.latest |= kept
        self.run_dir.append_metrics(step or 0, self.stage, kept)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds them."""
