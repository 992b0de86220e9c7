"""What a checkpoint knows of the log, so that a resumed run neither loses a row nor writes one twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from unlearn.callbacks.schedule import step_finished
from unlearn.tracking.files import cut_lines
from unlearn.tracking.logger import RunDirLogger

if TYPE_CHECKING:
    from unlearn.tracking.rundir import RunDirectory

KEY = "journal"
"""Key of the checkpoint."""


class Journal(Callback):
    """Adds ``journal`` to every checkpoint: {metrics_bytes, step, pending, mlflow_run_id}.

    Lightning logs the numbers of a step after the callbacks have seen its end, and so after the checkpoint; a process killed in between
    would lose them. They are kept as ``pending``, with their ``step``. ``metrics_bytes`` is how long metrics.jsonl is.
    """

    def __init__(self, run: RunDirectory, mlflow_run_id: Callable[[], str | None]) -> None:
        """Watch the log of ``run``; ``mlflow_run_id`` gives the id of the MLflow run as soon as it is known, on rank zero."""
        self.run, self._ask = run, mlflow_run_id
        self.mlflow_run_id: str | None = None
        self.unlogged = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell every process the id of the MLflow run."""
        self.mlflow_run_id = trainer.strategy.broadcast(self._ask())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The step before has been logged."""
        self.unlogged = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """This step has not."""
        self.unlogged = step_finished(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step has been logged."""
        self.unlogged = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the journal."""
        pending = {name: float(value) for name, value in pl_module.logged.items()} if self.unlogged else {}
        checkpoint[KEY] = {
            "metrics_bytes": self._settled(trainer) if trainer.is_global_zero else 0,
            "step": trainer.global_step - 1,
            "pending": pending,
            "mlflow_run_id": self._ask() or self.mlflow_run_id,
        }

    def _settled(self, trainer: Trainer) -> int:
        """Bytes of metrics.jsonl, once every row is there and on disk."""
        for logger in trainer.loggers:
            if isinstance(logger, RunDirLogger):
                logger.save()
        path = self.run.metrics_path
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)


def rewind(run: RunDirectory, checkpoint: dict[str, Any] | None) -> None:
    """Bring metrics.jsonl to where ``checkpoint`` was taken; to its beginning where there is none."""
    journal = (checkpoint or {}).get(KEY, {"metrics_bytes": 0, "pending": {}})
    cut_lines(run.metrics_path, journal["metrics_bytes"])
    if journal["pending"]:
        run.append_metrics(journal["step"], "train", journal["pending"])
