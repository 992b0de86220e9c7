"""Run by test_module_ddp: trains a trivial module on two CPU processes, from the start, from a checkpoint, and with the rows shared out by
Lightning, which fails; writes down what each was served."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.data.test_module import Learner, module
from unlearn.config.schema import BatchConfig


def fit(folder: Path, resume: Path | None, share_out: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    data = module(batch=BatchConfig(forget=4, retain=4, known=4, unknown=8), accumulate=2)
    learner = Learner()
    trainer = lightning.Trainer(
        max_steps=data.steps,
        max_epochs=-1,
        accumulate_grad_batches=2,
        use_distributed_sampler=share_out,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, datamodule=data, ckpt_path=resume)
    served = {"seen": learner.seen, "weight": learner.weight.tolist()}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(served))


def main(folder: Path) -> None:
    fit(folder / "two", None)
    fit(folder / "again", folder / "two" / "step=4.ckpt")
    fit(folder / "shared", None, share_out=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
