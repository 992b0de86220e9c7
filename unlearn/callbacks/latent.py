"""Latent distance, followed during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from unlearn.callbacks.schedule import due, log_metrics

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.evaluation.latent import LatentMeter
    from unlearn.tracking.rundir import RunDirectory


class LatentDistance(Callback):
    """Logs ``latent/distance_to_known``, ``latent/distance_to_unknown`` (mean squared standardised distance), ``latent/p_unknown`` and
    ``latent/c2st_auc`` (both in [0, 1]) at the first step, every ``every`` steps and at the end; keeps the activations for the picture.
    """

    def __init__(self, meter: LatentMeter, every: int, run: RunDirectory) -> None:
        """Measure with ``meter`` every ``every`` steps (0: first and last only); write activations to ``run``."""
        self.meter, self.every, self.run = meter, every, run
        self.before: dict[str, Tensor] = {}

    def remember(self, lm: PreTrainedModel) -> None:
        """Take the activations of the original model; called once, before training."""
        self.before = {group: self.meter.activations(lm, group) for group in ("known", "unknown", "forget")}

    def picture(self, lm: PreTrainedModel) -> None:
        """Write ``known_ND``, ``unknown_ND``, ``target_before_ND`` (original model) and ``target_after_ND`` (this one)."""
        self._write(self.meter.activations(lm, "forget"))

    @rank_zero_only
    def _write(self, after: Tensor) -> None:
        self.run.write_activations(
            known_ND=self.before["known"].numpy(),
            unknown_MD=self.before["unknown"].numpy(),
            target_before_KD=self.before["forget"].numpy(),
            target_after_KD=after.numpy(),
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model before its first step."""
        if trainer.global_step == 0:
            log_metrics(trainer, self.meter.quick(pl_module.whole()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure when it is due."""
        if due(trainer, self.every):
            log_metrics(trainer, self.meter.quick(pl_module.whole()))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the picture of the final model."""
        if trainer.global_step >= trainer.max_steps:
            pl_module.conclude()
        self.picture(pl_module.lm)
