"""Stopping well: a loss that is not finite, and an interrupt from the keyboard or the scheduler."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from unlearn.callbacks.schedule import step_finished
from unlearn.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

CHECKPOINT = "last.ckpt"
"""Name of the checkpoint that ``unlearn run --resume`` goes on from."""


class NonFiniteGuard(Callback):
    """Stops before a loss or gradient that is not finite reaches the weights, and keeps the last good ones in ``last_good.ckpt``."""

    def __init__(self, folder: Path) -> None:
        """Write the checkpoint to ``folder``."""
        self.folder = folder

    def _stop(self, trainer: Trainer, what: str) -> None:
        path = self.folder / "last_good.ckpt"
        trainer.save_checkpoint(path)
        raise RunError(
            f"{what} at step {trainer.global_step} must be finite; found nan or inf. The weights before it are in {path}. "
            "Lower optim.lr, or bound the forgetting term."
        )

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss.

        Raises:
            RunError: it is not finite.
        """
        if not torch.isfinite(loss):
            self._stop(trainer, "train/loss")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients.

        Raises:
            RunError: one is not finite.
        """
        norms = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if norms and not torch.isfinite(torch.stack(norms)).all():
            self._stop(trainer, "The gradient")


def checkpoints(folder: Path, every: int) -> ModelCheckpoint:
    """Lightning's checkpoint callback: ``last.ckpt`` every ``every`` steps and at the end (0: at the end only)."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="step{step:06d}",
        auto_insert_metric_name=False,
        every_n_train_steps=every or None,
        save_on_train_epoch_end=True,
        save_last=True,
        save_top_k=1,
        enable_version_counter=False,
    )


class GracefulStop(Callback):
    """Turns Ctrl-C (and SIGTERM) into: finish this step, write ``last.ckpt``, stop. A second Ctrl-C stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, folder: Path) -> None:
        """Write the checkpoint to ``folder``."""
        self.folder = folder
        self.asked = self.saved = False
        self.previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this step; press Ctrl-C again to stop at once")

    @rank_zero_only
    def _say(self, text: str) -> None:
        Console(stderr=True).print(text)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when asked to and the step is whole; its metrics are logged after this."""
        if self.asked and step_finished(trainer) and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.folder / CHECKPOINT)
            self.saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop after saving."""
        if self.saved:
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
