"""The LightningModule through a real Trainer."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from tests.toys import Toy, toy
from unlearn.callbacks.guard import GracefulStop, NonFiniteGuard
from unlearn.config.schema import MethodConfig, ModelConfig, OptimConfig, TrainableConfig, TrainerConfig
from unlearn.errors import RunError
from unlearn.launch import make_trainer, trainer_settings
from unlearn.methods.base import Method, MethodContext
from unlearn.module import UnlearningModule
from unlearn.registry import entries
from unlearn.types import LossTerms


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


def module_of(
    made: Toy, name: str = "sae_guided", model: ModelConfig | None = None, optimiser: str = "adamw", **optim: object
) -> UnlearningModule:
    lm, method = made.ready(name, model=model)
    made.datamodule.active_streams = method.streams_of(method.config)
    return UnlearningModule(lm, method, OptimConfig(**{"name": optimiser, "steps": 5, "lr": 1e-3, **optim}))


def trainer(callbacks: list[pl.Callback], loggers: list[object] | None = None, **optim: object) -> pl.Trainer:
    config = TrainerConfig(accelerator="cpu", devices="1", progress_bar=False)
    return make_trainer(config, OptimConfig(**{"steps": 5, "lr": 1e-3, **optim}), callbacks, loggers or [], trainer_settings(config, {}))


def weights(module: UnlearningModule) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters() if p.requires_grad]


def test_logs_every_term_at_every_step(tmp_path: Path) -> None:
    made, rows = toy(tmp_path), Rows()
    trainer([], [rows]).fit(module_of(made), datamodule=made.datamodule)
    logged = [(step, set(m) - {"epoch"}) for step, m in rows.rows if "train/loss" in m]
    assert [step for step, _ in logged] == [0, 1, 2, 3, 4]
    assert all(names == {"train/loss", "train/forget", "train/retain_kl", "train/retain_hidden"} for _, names in logged)


def test_trains_only_what_is_unfrozen(tmp_path: Path) -> None:
    made = toy(tmp_path)
    before = {n: p.clone() for n, p in made.lm.named_parameters()}
    module = module_of(made)
    trainer([]).fit(module, datamodule=made.datamodule)
    changed = {n for n, p in module.lm.named_parameters() if not torch.equal(p, before[n])}
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


class Diary(Method):
    """Writes down what is called when."""

    name = summary = family = paper = "diary"
    streams = ("forget",)

    def __init__(self) -> None:
        super().__init__(MethodConfig(name="diary"), MethodContext(n_blocks=4))
        self.calls: list[str] = []

    def before_step(self, lm: object, step: int, steps: int) -> None:
        self.calls.append(f"before {step} of {steps}")

    def loss(self, lm: torch.nn.Module, batch: dict) -> LossTerms:
        self.calls.append("loss")
        total = sum(p.square().sum() for p in lm.parameters() if p.requires_grad)
        return LossTerms(total, {})

    def adjust_gradients(self, lm: torch.nn.Module) -> None:
        self.calls.append("adjust")
        for p in lm.parameters():
            if p.grad is not None:
                p.grad.zero_()

    def finish(self, lm: object) -> None:
        self.calls.append("finish")

    def install(self, lm: object) -> None:
        self.calls.append("install")


def test_the_method_is_called_once_for_each_step_and_may_change_its_gradients(tmp_path: Path) -> None:
    made, diary = toy(tmp_path), Diary()
    module = module_of(made, "gradient_ascent")
    module.method = diary
    module.optim = OptimConfig(steps=2)
    made.datamodule.steps, made.datamodule.accumulate = 2, 2
    before = weights(module)
    config = TrainerConfig(accelerator="cpu", devices="1", progress_bar=False, accumulate=2)
    make_trainer(config, module.optim, [], [], trainer_settings(config, {})).fit(module, datamodule=made.datamodule)
    module.conclude()
    module.conclude()
    heard = ["loss"] * 2  # in passes without a gradient, to know what the micro-batches have to say to each other
    assert diary.calls == [*(w for k in (0, 1) for w in (f"before {k} of 2", *heard, "loss", "loss", "adjust")), "finish", "install"]
    assert all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


QUICK = ("sae_guided", "gradient_ascent")
RESUMED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name, entry in entries("method").items()
    if entry.facts.get("streams") or entry.facts.get("wraps")
]


@pytest.mark.parametrize("method", RESUMED)
def test_interrupted_and_resumed_training_gives_the_same_weights(tmp_path: Path, method: str) -> None:
    check_resume(tmp_path, method)


@pytest.mark.slow
def test_so_it_does_with_optimiser_states_in_8_bits(tmp_path: Path) -> None:
    """Those of the embeddings: smaller tensors than 4,096 numbers keep 32 bits."""
    check_resume(tmp_path, "gradient_ascent", ModelConfig(trainable=TrainableConfig(embeddings=True)), "adamw_8bit")
    (state,) = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer_states"]
    moments = [entry.get("__bnb_optimizer_quant_state__", entry)["state1"] for entry in state["state"].values()]
    kept = {moment.dtype for moment in moments}
    assert kept == {torch.uint8, torch.float32}


def check_resume(tmp_path: Path, method: str, model: ModelConfig | None = None, optimiser: str = "adamw") -> None:
    made = toy(tmp_path / "a")
    whole = module_of(made, method, model, optimiser)
    trainer([]).fit(whole, datamodule=made.datamodule)

    cut = toy(tmp_path / "b")
    stop = GracefulStop(tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer([StopAt(stop, 2), stop]).fit(module_of(cut, method, model, optimiser), datamodule=cut.datamodule)
    assert (tmp_path / "last.ckpt").exists()

    again = toy(tmp_path / "c")
    resumed = module_of(again, method, model, optimiser)
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
