import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from unlearn.tracking.logger import RunDirLogger
from unlearn.tracking.reader import read_run
from unlearn.tracking.rundir import RunDirectory


class Line(LightningModule):
    """Fits one number; logs its loss."""

    def __init__(self, fail_at=None, error=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fail_at, self.error = fail_at, error

    def training_step(self, batch, batch_idx):
        if self.fail_at is not None and self.global_step >= self.fail_at:
            raise self.error
        loss = (self.weight - batch).pow(2).mean()
        self.log_dict({"train/loss": loss, "latent/p_unknown": 0.5}, batch_size=1)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(loggers, steps=6, **more):
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=loggers,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **more},
    )


def loader():
    return DataLoader(torch.ones(100, 1), batch_size=1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_trainer_writes_tidy_rows_and_keeps_checkpoints_in_the_run(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    logger = RunDirLogger(run)
    trainer([logger], enable_checkpointing=True, callbacks=[ModelCheckpoint(save_last=True)]).fit(Line(), loader())
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert {row["key"] for row in rows} == {"train/loss", "latent/p_unknown"}
    assert {row["stage"] for row in rows} == {"train"}
    steps, losses = read_run(run.path).series("train/loss")
    assert steps == [1, 3, 5]
    assert losses == pytest.approx([0.8**2, 0.8**6, 0.8**10])
    assert (run.checkpoints / "last.ckpt").is_file()
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "metrics.jsonl", "plots", "status"]


def test_stage_is_the_callers_word(tmp_path):
    logger = RunDirLogger(RunDirectory.create(tmp_path, "a"))
    logger.log_metrics({"x": 1.0}, 3)
    logger.stage = "final"
    logger.log_metrics({"x": 2.0, "epoch": 0})
    assert [(row["step"], row["stage"], row["value"]) for row in read_run(logger.run_dir.path).metrics] == [
        (0, "final", 2.0),
        (3, "train", 1.0),
    ]
