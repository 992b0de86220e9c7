"""When a callback measures, and where its numbers go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def step_finished(trainer: Trainer) -> bool:
    """Whether the micro-batch that has just ended was the last of its optimiser step."""
    return not trainer.fit_loop._should_accumulate()


def due(trainer: Trainer, every: int) -> bool:
    """Whether this is the end of an optimiser step that is a multiple of ``every``, or the last one."""
    step = trainer.global_step
    return step_finished(trainer) and (step == trainer.max_steps or (every > 0 and step % every == 0))


def log_metrics(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Send ``metrics`` to every logger under the current optimiser step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step)
