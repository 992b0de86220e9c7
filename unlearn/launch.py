"""What the launcher decided: ``LT_*`` variables of ``fabric run`` (the former ``lightning run model``), and the Trainer made from them.

A launcher only sets variables and starts processes; a Trainer does not read them. They are read here, so that nothing is said twice:
a value given both by the launcher and by the configuration, and not the same, is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearn.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger

    from unlearn.config.schema import OptimConfig, TrainerConfig

LAUNCHER: Mapping[str, str] = {
    "accelerator": "LT_ACCELERATOR",
    "devices": "LT_DEVICES",
    "num_nodes": "LT_NUM_NODES",
    "strategy": "LT_STRATEGY",
    "precision": "LT_PRECISION",
}
DEFAULTS: Mapping[str, str] = {"accelerator": "auto", "devices": "auto", "num_nodes": "1", "strategy": "auto", "precision": "32-true"}


RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def is_rank_zero() -> bool:
    """Whether this process is the one that writes; launchers and Lightning set these variables in every process they start."""
    ranks = [os.environ[name] for name in RANK_VARIABLES if os.environ.get(name)]
    return not ranks or ranks[0] == "0"


def trainer_settings(config: TrainerConfig, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Accelerator, devices, num_nodes, strategy and precision, from the configuration, else the launcher, else the defaults.

    Raises:
        ConfigError: configuration and launcher disagree; every disagreement is listed.
    """
    environment = os.environ if environment is None else environment
    settings, problems = {}, []
    for key, variable in LAUNCHER.items():
        said, launched = getattr(config, key), environment.get(variable)
        if said is not None and launched is not None and str(said) != launched:
            problems.append(
                f"trainer.{key} must agree with the launcher ({variable}={launched}); found {said!r}. Leave it out of the configuration."
            )
        settings[key] = str(said) if said is not None else launched or DEFAULTS[key]
    if problems:
        raise ConfigError(problems)
    return settings


def _devices(value: str) -> int | str | list[int]:
    if "," in value:
        return [int(v) for v in value.split(",") if v.strip()]
    return int(value) if value.lstrip("-").isdigit() else value


def make_trainer(
    config: TrainerConfig, optim: OptimConfig, callbacks: list[Callback], loggers: list[Logger], settings: Mapping[str, str]
) -> Any:
    """A Lightning Trainer with a budget in optimiser steps."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Checkpoint

    return Trainer(
        accelerator=settings["accelerator"],
        devices=_devices(settings["devices"]),
        num_nodes=int(settings["num_nodes"]),
        strategy=settings["strategy"],
        precision=settings["precision"],
        max_steps=optim.steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=optim.clip or None,
        callbacks=callbacks,
        logger=loggers,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def frozen_device(settings: Mapping[str, str]) -> torch.device:
    """Device on which the frozen model is read before training starts."""
    import torch

    if settings["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
