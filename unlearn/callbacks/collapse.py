"""Collapse, followed during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from unlearn.callbacks.schedule import due, log_metrics

if TYPE_CHECKING:
    from unlearn.evaluation.suite import Suite


class CollapseMonitor(Callback):
    """Logs ``generic/perplexity``, ``generic/kl_to_base`` (nats per token), ``collapse/hidden_norm_drift`` (relative), when due."""

    def __init__(self, suite: Suite, every: int) -> None:
        """Measure with ``suite`` every ``every`` steps (0: first and last only)."""
        self.suite, self.every = suite, every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model before its first step."""
        if trainer.global_step == 0:
            log_metrics(trainer, self.suite.collapse(pl_module.whole()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure when it is due."""
        if due(trainer, self.every):
            log_metrics(trainer, self.suite.collapse(pl_module.whole()))
