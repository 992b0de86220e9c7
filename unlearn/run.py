"""One run from start to end.

The lifecycle, with the place of every part::

    execute(config)
        run directory, manifest                          tracking
        source.assets(); source.load(); check            data, world
        load_lm; load_sae; hook-point check              models
        UnlearningDataModule                             data
        banks; select_latents                            latents    frozen model, once, cached
        select_trainable                                 models     (LoRA wraps the model here)
        ReferenceStore                                   models     frozen model, once, cached
        method; UnlearningModule                         methods, module
        Suite.measure_base                               evaluation frozen model, once, cached
        Trainer.fit                                      lightning
            training_step: method.loss                   module
            on_train_batch_end: Cost, LatentDistance, CollapseMonitor
            on_before_backward: NonFiniteGuard
            on_fit_end: Evaluation -> results.json, samples.jsonl
        status, artifacts                                tracking
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.assembly import Assembly, assemble, stage
from unlearn.config.fingerprint import fingerprint, flatten, to_yaml
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.errors import RunError, UnlearnError
from unlearn.launch import is_rank_zero
from unlearn.tracking.files import read_json
from unlearn.tracking.manifest import update_manifest, write_manifest
from unlearn.tracking.rundir import RunDirectory, is_run, run_path

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def execute(config: RunConfig, *, force: bool = False) -> Path:
    """Run one configuration from start to end and return its run directory.

    A finished run with the same fingerprint is not run again unless ``force``.

    Raises:
        RunError: the run directory belongs to another configuration or is unfinished.
        UnlearnError: anything else a user can act on.
    """
    path = run_path(config.out, config.name)
    if not is_rank_zero():
        return _go(config, RunDirectory(path), checkpoint=None)
    if path.exists() and is_run(path) and not force:
        _check_place(config, path)
        if read_json(path / "status").get("state") == "finished":
            _say(f"{config.name}: finished before with the same configuration, kept (--force runs it again)")
            return path
    run = RunDirectory.create(config.out, config.name, exist="replace" if force else "error")
    run.write_config(to_yaml(config))
    return _go(config, run, checkpoint=None)


def _check_place(config: RunConfig, path: Path) -> None:
    """Refuse a folder that holds another configuration's run, or this one's unfinished."""
    if read_json(path / "manifest.json").get("fingerprint") != fingerprint(config):
        raise RunError(f"{path} must be a new folder; found a run with another configuration. Take another name, or replace it by --force.")
    state = read_json(path / "status").get("state")
    if state != "finished":
        raise RunError(
            f"{path} must be new or finished; found a run that is {state}. Go on with --resume {path}, or start over by --force."
        )


def resume(path: str | Path) -> Path:
    """Go on with an interrupted run from its last checkpoint (from the start where there is none) and return its directory.

    Raises:
        RunError: the folder is no run, or the run has finished.
    """
    run = RunDirectory.open(path)
    if is_rank_zero() and read_json(run.status_path).get("state") == "finished":
        raise RunError(f"{path} must be an unfinished run to be resumed; found one that has finished.")
    config = load_config(run.config_path, schemas=plugin_schemas())
    checkpoint = run.checkpoints / "last.ckpt"
    if is_rank_zero():
        run.set_status("running")
    return _go(config, run, checkpoint if checkpoint.exists() else None)


def _go(config: RunConfig, run: RunDirectory, checkpoint: Path | None) -> Path:
    """Assemble, train, measure, close; whatever happens, the status says how it ended."""
    tracker: Logger | None = None
    try:
        with _quiet():
            assembly = assemble(config, run)
            tracker = _tracker(assembly)
            _fit(assembly, tracker, checkpoint)
        _close(assembly, tracker)
    except KeyboardInterrupt:
        _end(run, tracker, "killed", "interrupted")
        raise
    except UnlearnError as error:
        _end(run, tracker, "failed", str(error))
        raise
    except Exception as error:
        _end(run, tracker, "failed", f"{type(error).__name__}: {error}")
        raise
    return run.path


def _tracker(assembly: Assembly) -> Logger | None:
    """Write the manifest and start (or continue) the MLflow run."""
    from unlearn.tracking.mlflow import make_mlflow_logger

    config, run = assembly.config, assembly.run
    if not is_rank_zero():
        return None
    kept = read_json(run.manifest_path).get("mlflow_run_id")
    manifest = write_manifest(run, config, assembly.facts)
    versions = {f"version.{name}": version for name, version in manifest["versions"].items()}
    tags = {
        "fingerprint": manifest["fingerprint"],
        "git_commit": str((manifest["git"] or {}).get("commit", "")),
        "model": str(config.model.path or config.data.source),
        "model_fingerprint": assembly.facts["model_fingerprint"],
        "tokenizer": str(config.model.tokenizer or config.model.path or config.data.source),
        "revision": str(config.model.revision or ""),
        "global_batch": json.dumps(manifest["batch"]),
        "method": config.method.name,
        **versions,
    }
    tracker = make_mlflow_logger(config.tracking, config.name, flatten(config), tags, run_id=kept)
    if tracker is not None and getattr(tracker, "run_id", None):
        update_manifest(run, {"mlflow_run_id": tracker.run_id})
    return tracker


def _fit(assembly: Assembly, tracker: Logger | None, checkpoint: Path | None) -> None:
    """Train; a method that trains nothing is measured only."""
    from unlearn.callbacks.collapse import CollapseMonitor
    from unlearn.callbacks.guard import GracefulStop, NonFiniteGuard, checkpoints
    from unlearn.callbacks.progress import StepBar
    from unlearn.launch import make_trainer
    from unlearn.tracking.logger import RunDirLogger

    config, run = assembly.config, assembly.run
    every = config.evaluation.every
    module = assembly.module
    if config.optim.steps and module.method.streams_of(module.method.config):
        callbacks = [
            assembly.cost, NonFiniteGuard(run.checkpoints), assembly.latent, CollapseMonitor(assembly.suite, every), assembly.evaluation,
            checkpoints(run.checkpoints, config.trainer.checkpoint_every), GracefulStop(run.checkpoints),
            *([StepBar(config.name)] if config.trainer.progress_bar else []),
        ]  # fmt: skip
        loggers = [RunDirLogger(run), *([tracker] if tracker else [])]
        trainer = make_trainer(config.trainer, config.optim, callbacks, loggers, assembly.settings)
        try:
            trainer.fit(module, datamodule=assembly.datamodule, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as ending:  # Lightning's word for Ctrl-C
            if isinstance(ending.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
    else:
        with stage("measurement"):
            assembly.evaluation.conclude(module)
            assembly.latent.picture(module.lm)
    if is_rank_zero():
        run.write_results(assembly.cost.results())


def _close(assembly: Assembly, tracker: Logger | None) -> None:
    """Log the results and say that the run has finished."""
    run = assembly.run
    if tracker is not None and is_rank_zero():
        numbers = {k: v for k, v in read_json(run.results_path).items() if isinstance(v, int | float)}
        tracker.log_metrics(numbers, step=assembly.config.optim.steps)
    _end(run, tracker, "finished", "")


def _end(run: RunDirectory, tracker: Logger | None, state: str, reason: str) -> None:
    """Write the status, and close the MLflow run with what is in the folder."""
    if not is_rank_zero():
        return
    run.set_status(state, reason)
    if tracker is not None:
        tracker.log_artifacts(run.artifacts())
        tracker.finalize({"finished": "success", "killed": "killed"}.get(state, "failed"))


def _say(text: str) -> None:
    from rich.console import Console

    if is_rank_zero():
        Console(stderr=True, highlight=False).print(text, markup=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
