"""What the terminal shows while a model is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.progress import TaskID


class StepBar(Callback):
    """A bar over optimiser steps with the loss beside it, on standard error; only where that is a terminal."""

    def __init__(self, name: str) -> None:
        """Show ``name`` before the bar."""
        self.name = name
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, at the step where the run goes on."""
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.bar.start()
        self.task = self.bar.add_task(self.name, total=trainer.max_steps, completed=trainer.global_step, note="")

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move it."""
        if self.bar is not None and self.task is not None:
            loss = float(outputs["loss"]) if isinstance(outputs, dict) else float(outputs)
            self.bar.update(self.task, completed=trainer.global_step, note=f"loss {loss:.4g}")

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that what takes time now is measuring."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, note="measuring")

    @rank_zero_only
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away, however the run ends."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
