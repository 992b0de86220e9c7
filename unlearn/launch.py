"""What the launcher decided: ``LT_*`` variables of ``fabric run`` (the former ``lightning run model``), and the Trainer made from them.

A launcher only sets variables and starts processes; a Trainer does not read them. They are read here, so that nothing is said twice:
a value given both by the launcher and by the configuration, and not the same, is an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearn.config.checks import check, one_of
from unlearn.errors import PREEMPTED, ConfigError
from unlearn.processes import Place, is_rank_zero, place
from unlearn.registry import find

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger

    from unlearn.config.schema import OptimConfig, RunConfig, TrainerConfig

__all__ = ["check_nodes", "check_sharded", "frozen_device", "is_rank_zero", "make_trainer", "quiet", "start_processes"] + [
    "trainer_settings",
    "wanted",
]

SAID_BY: Mapping[str, str] = {
    "accelerator": "LT_ACCELERATOR",
    "devices": "LT_DEVICES",
    "num_nodes": "LT_NUM_NODES",
    "strategy": "LT_STRATEGY",
    "precision": "LT_PRECISION",
}
"""What ``fabric run`` sets; it starts torchrun, whose variables come on top."""
COUNTED_BY: Mapping[str, Mapping[str, str]] = {
    "torchelastic": {"devices": "LOCAL_WORLD_SIZE", "num_nodes": "GROUP_WORLD_SIZE"},
    "slurm": {"devices": "SLURM_NTASKS_PER_NODE", "num_nodes": "SLURM_NNODES"},
}
"""Where launchers say how many processes they have started."""
DEFAULTS: Mapping[str, str] = {"accelerator": "auto", "devices": "auto", "num_nodes": "1", "strategy": "auto", "precision": "32-true"}
IDLE_DDP = "ddp_find_unused_parameters_true"
SHARDED = "fsdp2"
"""``trainer.strategy`` that shares the weights out over all processes."""
PRECISIONS: tuple[str, ...] = ("32-true", "bf16-mixed")
"""What ``SHARDED`` takes; ``model.dtype`` says how the language model's weights are kept, and the SAE stays in fp32."""
PATIENCE_S = 300
"""Seconds that processes have for saving and leaving after a signal."""
SAME: Mapping[str, str] = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's short names of precisions."""


def trainer_settings(config: TrainerConfig, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Accelerator, devices, num_nodes, strategy and precision, from the configuration, else the launcher, else the defaults; ``read_on``.

    Raises:
        ConfigError: configuration and launcher disagree; every disagreement is listed.
    """
    environment = os.environ if environment is None else environment
    found = place(environment)
    settings, problems = {}, []
    for key in SAID_BY:
        said = getattr(config, key)
        launched = {v: environment[v] for v in _variables(key, found) if environment.get(v, "auto") != "auto"}
        for variable, value in launched.items():
            if said not in (None, "auto") and not _agree(key, str(said), value):
                problems.append(
                    f"trainer.{key} must agree with the launcher ({variable}={value}); found {said!r}. Leave it out of the configuration."
                )
        settings[key] = str(said) if said not in (None, "auto") else next(iter(launched.values()), DEFAULTS[key])
    if problems:
        raise ConfigError(problems)
    return {**settings, "read_on": config.read_on}


def check_nodes(settings: Mapping[str, str]) -> None:
    """Refuse several nodes on which nobody has started anything.

    Raises:
        ConfigError: ``num_nodes`` is larger than 1, and no launcher is there.
    """
    if not place().launcher and int(settings["num_nodes"]) > 1:
        raise ConfigError(
            f"trainer.num_nodes must be 1 where no launcher has started processes on every node; found {settings['num_nodes']}. "
            "Use fabric run --num-nodes, torchrun --nnodes or srun with experiments/run.py."
        )


def _variables(key: str, found: Place) -> list[str]:
    """Variables in which the launcher may have said ``key``; one SLURM task may start further processes by itself."""
    counted = {} if found.launcher == "slurm" and found.size == 1 else COUNTED_BY.get(found.launcher, {})
    return [SAID_BY[key], *([counted[key]] if key in counted else [])]


def _agree(key: str, said: str, launched: str) -> bool:
    """Whether both say the same; a list of devices is as good as its length."""
    if said == launched or SAME.get(said, said) == SAME.get(launched, launched):
        return True
    return key == "devices" and "," in said and launched.isdigit() and len(_listed(said)) == int(launched)


def _listed(value: str) -> list[int]:
    return [int(v) for v in value.split(",") if v.strip()]


def wanted(settings: Mapping[str, str]) -> int:
    """Processes on this node that the settings ask for; ``auto`` and -1 take every GPU."""
    devices = settings["devices"]
    if "," in devices:
        return len(_listed(devices))
    if devices.isdigit() and int(devices) > 0:
        return int(devices)
    import torch

    on_gpu = settings["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.cuda.device_count() if on_gpu else 1


def start_processes(configs: Sequence[TrainerConfig], command: Sequence[str]) -> None:
    """Where several devices are asked for and nobody has started a process for each: run ``unlearn <command>`` in each of as many
    processes by torchelastic, as torchrun does, and exit with their status when they are done. Otherwise nothing happens.

    Raises:
        ConfigError: the runs ask for different numbers of devices, or for several nodes, or configuration and launcher disagree.
        SystemExit: the processes have ended.
    """
    settings = [trainer_settings(config) for config in configs]
    for each in settings:
        check_nodes(each)
    counts = [wanted(each) for each in settings]
    if place().size > 1 or place().launcher not in ("", "slurm") or max(counts, default=1) == 1:
        return
    if len(set(counts)) > 1:
        raise ConfigError(f"trainer.devices must be the same in all runs of a study; found {min(counts)} and {max(counts)}. Use --only.")
    raise SystemExit(_elastic(counts[0], command))


def _elastic(count: int, command: Sequence[str]) -> int:
    """Exit status of ``count`` processes on this machine; a signal is passed on to each, once, and waited for."""
    import logging
    import signal
    import uuid

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        shutdown_timeout=PATIENCE_S,
    )
    unsafe = [] if os.getcwd() in sys.path or "" in sys.path else ["-P"]
    try:
        elastic_launch(launch, sys.executable)(*unsafe, "-m", "unlearn", *command)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:
        return PREEMPTED if error.sigval in (signal.SIGTERM, signal.SIGUSR1) else 128 + int(error.sigval)
    return 0


def _devices(value: str) -> int | str | list[int]:
    if "," in value:
        return _listed(value)
    return int(value) if value.lstrip("-").isdigit() else value


def _strategy(settings: Mapping[str, str], idle: bool) -> Any:
    """What the Trainer is given: a name it knows, or our own strategy. ``auto`` on several devices is DDP."""
    name = settings["strategy"]
    if name == "auto" and (wanted(settings) > 1 or int(settings["num_nodes"]) > 1):
        return IDLE_DDP if idle else "ddp"
    if name != SHARDED:
        return name
    from unlearn.sharding import ShardedStrategy

    return ShardedStrategy()


def check_sharded(settings: Mapping[str, str], config: RunConfig) -> None:
    """Refuse what cannot work with weights that are shared out over processes, before anything is loaded.

    Raises:
        ConfigError: another kind of sharding, a precision or a method that it does not take.
    """
    name = settings["strategy"]
    if name.startswith(("fsdp", "deepspeed_stage_3")) and name != SHARDED:
        raise ConfigError(f"trainer.strategy must be {SHARDED} to share weights out over processes; found {name!r}.")
    check(name == SHARDED or settings["read_on"] == "device", "trainer.read_on", f"device unless trainer.strategy is {SHARDED}", "cpu")
    if name != SHARDED:
        return
    one_of(SAME.get(settings["precision"], settings["precision"]), PRECISIONS, f"trainer.precision (with trainer.strategy {SHARDED})")
    method = find("method", config.method.name, "method.name").load()
    if not method.takes_sharded(config.method):
        raise ConfigError(
            f"trainer.strategy must not be {SHARDED} with method.name '{config.method.name}', which computes with whole weights; take ddp."
        )


def _environment() -> list[Any]:
    """Lightning's own choice, but for SLURM: what the scheduler's signals do is decided by a callback, not by Lightning."""
    if place().launcher != "slurm":
        return []
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)]


def make_trainer(
    config: TrainerConfig,
    optim: OptimConfig,
    callbacks: list[Callback],
    loggers: list[Logger],
    settings: Mapping[str, str],
    *,
    idle: bool = False,
) -> Any:
    """A Lightning Trainer with a budget in optimiser steps; ``idle``: a step may leave trained weights without a gradient."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Checkpoint

    from unlearn.tracking.checkpoint import DurableCheckpointIO

    check_nodes(settings)
    return Trainer(
        accelerator=settings["accelerator"],
        devices=_devices(settings["devices"]),
        num_nodes=int(settings["num_nodes"]),
        strategy=_strategy(settings, idle),
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
        plugins=[DurableCheckpointIO(), *_environment()],
    )


def frozen_device(settings: Mapping[str, str]) -> torch.device:
    """Device on which the model is read before training starts and after it has ended."""
    import torch

    if settings.get("read_on") != "cpu" and settings["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        devices, local_rank = settings["devices"], place().local_rank
        return torch.device("cuda", _listed(devices)[local_rank] if "," in devices else local_rank)
    return torch.device("cpu")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's and other libraries' small talk off the terminal; warnings of ours stay."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for module in ("lightning", "torch", "mlflow", "transformers", "sae_lens"):
                warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
