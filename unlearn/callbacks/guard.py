"""Stopping well: checkpoints, a loss that is not finite, and an interrupt from the keyboard or the scheduler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from unlearn.callbacks.schedule import step_finished
from unlearn.errors import Preempted, RunError
from unlearn.tracking.checkpoint import LAST

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they take a machine away; ``sbatch --signal=USR1@90`` sends the second."""
NOTHING, SCHEDULER, KEYBOARD = 0, 1, 2
"""Who asked for a stop; where ranks were asked by different ones, the larger counts."""


def highest(trainer: Trainer, value: int) -> int:
    """The largest ``value`` of all processes; each of them must call it."""
    if trainer.world_size == 1:
        return value
    shared = torch.tensor(value, device=trainer.strategy.root_device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


class NonFiniteGuard(Callback):
    """Stops before a loss or gradient that is not finite reaches the weights, and keeps the last good ones in ``last_good.ckpt``.

    All processes stop, whichever of them has met it.
    """

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
        if highest(trainer, int(not torch.isfinite(loss))):
            self._stop(trainer, "train/loss")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients.

        Raises:
            RunError: one is not finite.
        """
        norms = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if highest(trainer, int(bool(norms) and not torch.isfinite(torch.stack(norms)).all())):
            self._stop(trainer, "The gradient")


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` every ``every`` optimiser steps and at the end (0: at the end only), always at the end of a whole step."""

    def __init__(self, folder: Path, every: int) -> None:
        """Write to ``folder``."""
        self.folder, self.every = folder, every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when it is due."""
        step = trainer.global_step
        if self.every and step_finished(trainer) and step % self.every == 0 and step < trainer.max_steps:
            trainer.save_checkpoint(self.folder / LAST)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what training ended with; measuring it may still be interrupted."""
        trainer.save_checkpoint(self.folder / LAST)


def in_main_thread(handler: Callable[[int, FrameType | None], None], signals: tuple[int, ...]) -> dict[int, Any]:
    """Let ``handler`` answer to ``signals``; gives what answered before, nothing outside the main thread, where it cannot be done."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in signals}


@contextmanager
def preemptible() -> Iterator[None]:
    """While nothing else answers to the signals of a scheduler, the first of them raises ``Preempted`` wherever it arrives."""

    def stop(number: int, frame: FrameType | None) -> None:
        for other in PREEMPTION:
            signal.signal(other, signal.SIG_IGN)
        raise Preempted(f"preempted ({signal.Signals(number).name}) between steps")

    before = in_main_thread(stop, PREEMPTION)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class GracefulStop(Callback):
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into: finish this step, write ``last.ckpt``, stop. A second Ctrl-C stops at once.

    Ctrl-C ends in ``KeyboardInterrupt``, the others in ``Preempted``. A process that is asked takes all others along, so that a scheduler
    may tell one of them or all. It stands before the callbacks that measure the final model.
    """

    def __init__(self, folder: Path) -> None:
        """Write the checkpoint to ``folder``."""
        self.folder = folder
        self.asked = NOTHING
        self.signal = ""
        self.saved = False
        self.previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.asked = max(self.asked, SCHEDULER)
            self.signal = signal.Signals(number).name
            return
        if self.asked == KEYBOARD:
            raise KeyboardInterrupt
        self.asked = KEYBOARD
        self._say("stopping after this step; press Ctrl-C again to stop at once")

    @rank_zero_only
    def _say(self, text: str) -> None:
        Console(stderr=True).print(text)

    def _leave(self, step: int) -> None:
        if self.asked == KEYBOARD:
            raise KeyboardInterrupt
        raise Preempted(f"preempted ({self.signal or 'another process was told'}) and saved at step {step}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; Lightning, whose own handlers are in place by now, puts back what was there when ``fit`` ends."""
        self.previous = in_main_thread(self._handle, (signal.SIGINT, *PREEMPTION))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when asked to and the step is whole; its metrics are logged after this."""
        if not step_finished(trainer):
            return
        self.asked = highest(trainer, self.asked)
        if self.asked and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.folder / LAST)
            self.saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop after saving."""
        if self.saved:
            self._leave(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back; what answers to them from now on need not wait for a step to end."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the measurement where the last step was the one that was asked to be."""
        if self.asked:
            self._leave(trainer.global_step)
