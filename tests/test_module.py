"""The LightningModule through a real Trainer."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.callbacks.guard import GracefulStop, NonFiniteGuard
from unlearn.config.schema import OptimConfig, TrainerConfig
from unlearn.errors import RunError
from unlearn.launch import make_trainer, trainer_settings
from unlearn.models.decoder import blocks_of
from unlearn.module import UnlearningModule


class Rows(pl.loggers.logger.Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name = version = ""

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def module_of(made: Toy, method: str = "sae_guided", **optim: object) -> UnlearningModule:
    for block in blocks_of(made.lm)[: LAYER + 1]:
        block.requires_grad_(True)
    made.datamodule.active_streams = made.method(method).streams
    return UnlearningModule(made.lm, made.method(method), OptimConfig(**{"steps": 5, "lr": 1e-3, **optim}))


def trainer(callbacks: list[pl.Callback], loggers: list[object] | None = None, **optim: object) -> pl.Trainer:
    config = TrainerConfig(accelerator="cpu", devices="1", progress_bar=False)
    return make_trainer(config, OptimConfig(**{"steps": 5, "lr": 1e-3, **optim}), callbacks, loggers or [], trainer_settings(config, {}))


def weights(module: UnlearningModule) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.lm.parameters() if p.requires_grad]


def test_logs_every_term_at_every_step(tmp_path: Path) -> None:
    made, rows = toy(tmp_path), Rows()
    trainer([], [rows]).fit(module_of(made), datamodule=made.datamodule)
    logged = [(step, set(m) - {"epoch"}) for step, m in rows.rows if "train/loss" in m]
    assert [step for step, _ in logged] == [0, 1, 2, 3, 4]
    assert all(names == {"train/loss", "train/forget", "train/retain_kl", "train/retain_hidden"} for _, names in logged)


def test_trains_only_what_is_unfrozen(tmp_path: Path) -> None:
    made = toy(tmp_path)
    before = {n: p.clone() for n, p in made.lm.named_parameters()}
    trainer([]).fit(module_of(made), datamodule=made.datamodule)
    changed = {n for n, p in made.lm.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= {n for n in before if "layers.0." in n or "layers.1." in n}


def test_warmup_and_cosine_reach_the_optimiser(tmp_path: Path) -> None:
    made = toy(tmp_path)
    seen: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = module_of(made, warmup_steps=2, schedule="cosine", lr=1.0e-3)
    trainer([Watch()], warmup_steps=2, schedule="cosine").fit(module, datamodule=made.datamodule)
    assert seen == pytest.approx([5e-4, 1e-3, 1e-3, 0.75e-3, 0.25e-3])


class StopAt(pl.Callback):
    """Asks for an orderly end, as Ctrl-C does, at one step."""

    def __init__(self, stop: GracefulStop, step: int) -> None:
        self.stop, self.step = stop, step

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            self.stop.asked = True


@pytest.mark.parametrize("method", ["sae_guided", "gradient_ascent"])
def test_interrupted_and_resumed_training_gives_the_same_weights(tmp_path: Path, method: str) -> None:
    made = toy(tmp_path / "a")
    whole = module_of(made, method)
    trainer([]).fit(whole, datamodule=made.datamodule)

    cut = toy(tmp_path / "b")
    stop = GracefulStop(tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer([StopAt(stop, 2), stop]).fit(module_of(cut, method), datamodule=cut.datamodule)
    assert (tmp_path / "last.ckpt").exists()

    again = toy(tmp_path / "c")
    resumed = module_of(again, method)
    trainer([]).fit(resumed, datamodule=again.datamodule, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_checkpoint_holds_trained_weights_only(tmp_path: Path) -> None:
    made = toy(tmp_path)
    module = module_of(made)
    fitted = trainer([])
    fitted.fit(module, datamodule=made.datamodule)
    fitted.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    trained = {f"lm.{n}" for n, p in module.lm.named_parameters() if p.requires_grad}
    assert set(state) == trained | {"method._extra_state"}


class Poison(pl.Callback):
    """Makes a weight infinite before one step."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: UnlearningModule, *args: object) -> None:
        if trainer.global_step == 3:
            with torch.no_grad():
                next(p for p in pl_module.lm.parameters() if p.requires_grad).fill_(float("inf"))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    made = toy(tmp_path)
    with pytest.raises(RunError, match=r"train/loss at step 3 must be finite; found nan or inf\. .*last_good\.ckpt"):
        trainer([Poison(), NonFiniteGuard(tmp_path)]).fit(module_of(made), datamodule=made.datamodule)
    assert torch.load(tmp_path / "last_good.ckpt", weights_only=True)["global_step"] == 3
