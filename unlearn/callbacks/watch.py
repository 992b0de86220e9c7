"""One result, followed during training by somebody who may end the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from unlearn.callbacks.schedule import due, log_metrics
from unlearn.errors import RunError, Stopped
from unlearn.evaluation.answers import SET_NAMES, answer, right
from unlearn.tracking.logger import RunDirLogger

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.evaluation.suite import Suite
    from unlearn.types import Row

QUICK = "_quick"
"""Added to the key of an accuracy that was measured on some rows only."""


class Watch(Callback):
    """Tells ``told(step, value)`` of one result every ``every`` steps, and ends the run where that returns a reason.

    What is measured during training anyway (``latent/...``, ``generic/...``) is taken from the log. An accuracy is measured here, on at
    most ``rows`` questions spread over the entities, answered greedily, and logged as ``<key>_quick`` (in [0, 1]).
    """

    def __init__(self, suite: Suite, key: str, every: int, rows: int, told: Callable[[int, float], str]) -> None:
        """Follow the result ``key``; stands behind the callbacks that measure the others.

        Raises:
            RunError: ``key`` is an accuracy on a set that the data do not have.
        """
        self.suite, self.key, self.every, self.told = suite, key, every, told
        sets = {f"{scope}/accuracy{suffix}": name for name, (scope, suffix) in SET_NAMES.items()}
        self.rows: list[Row] = []
        self.reason = ""
        if key in sets:
            found = suite.data.evaluation.get(sets[key], ())
            if not found:
                raise RunError(f"{key} must be measured to be followed during training; found no rows of the set {sets[key]!r}.")
            count = min(rows, len(found))
            self.rows = [found[i * len(found) // count] for i in range(count)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure and tell when it is due; Lightning logs the numbers of this step after it."""
        if not due(trainer, self.every):
            return
        if self.rows:
            log_metrics(trainer, {f"{self.key}{QUICK}": self._accuracy(pl_module.whole())})
        latest = next(logger.latest for logger in trainer.loggers if isinstance(logger, RunDirLogger))
        self.reason = self.told(trainer.global_step, float(latest[f"{self.key}{QUICK}" if self.rows else self.key]))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the run, where that was asked for.

        Raises:
            Stopped: it was.
        """
        if self.reason:
            raise Stopped(self.reason)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it before the final model is measured, where that was asked for at the last step.

        Raises:
            Stopped: it was.
        """
        if self.reason:
            raise Stopped(self.reason)

    def _accuracy(self, lm: PreTrainedModel) -> float:
        """Share of the rows that are answered rightly."""
        was_training = lm.training
        lm.eval()
        try:
            with torch.no_grad():
                texts = answer(lm, self.suite.reader.tokens(self.rows), self.suite.reader)
        finally:
            lm.train(was_training)
        return sum(right(text, row) for text, row in zip(texts, self.rows, strict=True)) / len(self.rows)
