"""One run from start to end.

The lifecycle, with the place of every part::

    execute(config)
        run directory, manifest                          tracking
        source.assets(); source.serve(); check            data, world
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

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.assembly import Assembly, assemble, stage
from unlearn.config.fingerprint import fingerprint, flatten, to_yaml
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.errors import ElsewhereError, Preempted, RunError, Stopped, UnlearnError
from unlearn.launch import check_sharded, is_rank_zero, quiet, trainer_settings
from unlearn.meeting import Processes
from unlearn.processes import place
from unlearn.tracking.files import read_json
from unlearn.tracking.manifest import update_manifest, write_manifest
from unlearn.tracking.reader import logged
from unlearn.tracking.rundir import RunDirectory, is_run, run_path

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger


def execute(
    config: RunConfig,
    *,
    force: bool = False,
    go_on: bool = False,
    tags: Mapping[str, str] | None = None,
    watch: Callable[[Assembly], Sequence[Callback]] | None = None,
) -> Path:
    """Run one configuration from start to end and return its run directory.

    A finished run with the same fingerprint is not run again unless ``force``; an unfinished one is gone on with where ``go_on``. ``tags``
    are added to its MLflow run, and the callbacks of ``watch`` look on; one may end it by ``Stopped``.

    Raises:
        RunError: the run directory belongs to another configuration or is unfinished.
        Stopped: a callback of ``watch`` has ended it.
        UnlearnError: anything else a user can act on.
    """
    path = run_path(config.out, config.name)
    with Processes(config.trainer.start_timeout) as processes:
        if processes.behind(path):
            return path
        decided, checkpoint = processes.decide(lambda: _claim(config, path, force, go_on))
        if decided == "kept":
            return path
        return _go(config, RunDirectory(path), checkpoint and Path(checkpoint), processes, tags or {}, watch or (lambda assembly: ()))


def _claim(config: RunConfig, path: Path, force: bool, go_on: bool) -> tuple[str, str | None]:
    """What to do, and the checkpoint to start from: ``new`` (the folder has been made), ``resumed`` or ``kept``."""
    if go_on and _same_unfinished(config, path):
        if read_json(path / "manifest.json"):
            return "resumed", _reopen(RunDirectory.open(path))
        force = True  # it was stopped before anything was measured
    if path.exists() and is_run(path) and not force:
        _check_place(config, path)
        if read_json(path / "status").get("state") == "finished":
            _say(f"{config.name}: finished before with the same configuration, kept (--force runs it again)")
            return "kept", None
    run = RunDirectory.create(config.out, config.name, exist="replace" if force else "error")
    run.write_config(to_yaml(config))
    return "new", None


def _same_unfinished(config: RunConfig, path: Path) -> bool:
    """Whether ``path`` holds this configuration's run, not finished."""
    if not is_run(path) or read_json(path / "status").get("state") == "finished" or not (path / "config.yaml").is_file():
        return False
    return fingerprint(load_config(path / "config.yaml", schemas=plugin_schemas())) == fingerprint(config)


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
    config = load_config(run.config_path, schemas=plugin_schemas())
    with Processes(config.trainer.start_timeout) as processes:
        if processes.behind(run.path):
            return run.path
        checkpoint = processes.decide(lambda: _reopen(run))
        return _go(config, run, None if checkpoint is None else Path(checkpoint), processes, {}, lambda assembly: ())


def _reopen(run: RunDirectory) -> str | None:
    """Set an unfinished run going again; where its last checkpoint is, None without one."""
    if read_json(run.status_path).get("state") == "finished":
        raise RunError(f"{run.path} must be an unfinished run to be resumed; found one that has finished.")
    from unlearn.callbacks.journal import KEY, rewind
    from unlearn.tracking.checkpoint import newest, read

    path, damaged = newest(run.checkpoints)
    for sentence in damaged:
        _say(f"{sentence} The run goes on from {path.name if path else 'its first step'}.")
    checkpoint = None if path is None else read(path)
    rewind(run, checkpoint)
    kept = read_json(run.manifest_path).get("mlflow_run_id") or (checkpoint or {}).get(KEY, {}).get("mlflow_run_id")
    update_manifest(run, {"mlflow_run_id": kept})
    run.set_status("running")
    return None if path is None else str(path)


def _go(
    config: RunConfig,
    run: RunDirectory,
    checkpoint: Path | None,
    processes: Processes,
    tags: Mapping[str, str],
    watch: Callable[[Assembly], Sequence[Callback]],
) -> Path:
    """Assemble, train, measure, close; whatever happens, the status says how it ended."""
    from unlearn.callbacks.guard import preemptible

    tracker: Logger | None = None
    try:
        check_sharded(trainer_settings(config.trainer), config)
        with quiet(), preemptible():
            assembly = processes.in_turn(lambda: assemble(config, run), meanwhile=_import)
            tracker = processes.together(lambda: _tracker(assembly, tags))
            processes.announce(run.path)
            _fit(assembly, tracker, checkpoint, watch(assembly))
        _close(assembly, tracker)
    except KeyboardInterrupt:
        _end(run, tracker, "killed", "interrupted")
        raise
    except Preempted as stopped:
        _end(run, tracker, "killed", stopped.reason)
        raise
    except UnlearnError as error:
        _end(run, tracker, "stopped" if isinstance(error, Stopped) else "failed", str(error))
        raise
    except Exception as error:
        _end(run, tracker, "failed", f"{type(error).__name__}: {error}")
        raise
    return run.path


def _import() -> None:
    """Import what takes seconds."""
    import sae_lens  # noqa: F401
    import transformers  # noqa: F401

    import unlearn.module  # noqa: F401


def _tracker(assembly: Assembly, added: Mapping[str, str]) -> Logger | None:
    """Write the manifest and start (or continue) the MLflow run."""
    from unlearn.tracking.mlflow import make_mlflow_logger
    from unlearn.tracking.study import PARENT, join_study, naming, short_name

    config, run = assembly.config, assembly.run
    if not is_rank_zero():
        return None
    kept = read_json(run.manifest_path).get("mlflow_run_id")
    manifest = write_manifest(run, config, {**assembly.facts, "processes": place().facts()})
    tags = {**naming(config, manifest), **added}
    tracker = make_mlflow_logger(config.tracking, short_name(config.name), flatten(config), tags, run_id=kept)
    if tracker is not None and getattr(tracker, "run_id", None):
        update_manifest(run, {"mlflow_run_id": tracker.run_id})
    if tracker is not None:
        if PARENT not in added:
            join_study(tracker, config.tracking, config.out, config.name)
        for step, metrics in logged(run):  # of a resumed run: what the store has is not sent again, what it missed is
            tracker.log_metrics(metrics, step)
    return tracker


def _fit(assembly: Assembly, tracker: Logger | None, checkpoint: Path | None, watching: Sequence[Callback]) -> None:
    """Train; a method that trains nothing is measured only."""
    from unlearn.callbacks.collapse import CollapseMonitor
    from unlearn.callbacks.guard import Checkpoints, GracefulStop, NonFiniteGuard
    from unlearn.callbacks.journal import Journal
    from unlearn.callbacks.progress import StepBar
    from unlearn.callbacks.ranks import RankWatch
    from unlearn.launch import make_trainer
    from unlearn.tracking.logger import RunDirLogger

    config, run = assembly.config, assembly.run
    every = config.evaluation.every
    module = assembly.module
    if config.optim.steps and module.method.streams_of(module.method.config):
        watch = RankWatch(lambda reason: _end(run, tracker, "failed", reason, speaks=watch.speaks))
        callbacks = [
            assembly.cost, watch, NonFiniteGuard(run.checkpoints), Journal(run, lambda: getattr(tracker, "run_id", None)), assembly.latent,
            CollapseMonitor(assembly.suite, every), *watching, GracefulStop(run.checkpoints), assembly.evaluation,
            Checkpoints(run.checkpoints, config.trainer.checkpoint_every), *([StepBar(config.name)] if config.trainer.progress_bar else []),
        ]  # fmt: skip
        loggers = [RunDirLogger(run), *([tracker] if tracker else [])]
        idle = module.method.leaves_idle()
        trainer = make_trainer(config.trainer, config.optim, callbacks, loggers, assembly.settings, idle=idle)
        try:
            trainer.fit(module, datamodule=assembly.datamodule, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as ending:  # Lightning's word for Ctrl-C
            if isinstance(ending.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            if not watch.reason:
                raise
            if watch.speaks and not is_rank_zero():
                _end(run, None, "failed", watch.reason, speaks=True)
            raise (RunError(watch.reason) if watch.speaks else ElsewhereError(watch.reason)) from error
    else:
        with stage("measurement"):
            assembly.evaluation.conclude(module)
            assembly.latent.picture(module.lm)
    if is_rank_zero():
        run.write_results(assembly.cost.results())


def _close(assembly: Assembly, tracker: Logger | None) -> None:
    """Log the results with their figures and say that the run has finished."""
    from unlearn.report.figures import draw_run
    from unlearn.report.words import sentence_of

    run = assembly.run
    if tracker is not None and is_rank_zero():
        step, numbers = assembly.config.optim.steps, {k: v for k, v in read_json(run.results_path).items() if isinstance(v, int | float)}
        followed = dict(logged(run))
        there, keys = followed.get(step, {}), {key for metrics in followed.values() for key in metrics}
        tracker.log_metrics({k: v for k, v in numbers.items() if k in keys and k not in there}, step=step)
        tracker.log_metrics({k: v for k, v in numbers.items() if k not in keys}, step=0)  # which MLflow draws as bars
        changed = {k: v for k, v in numbers.items() if k in there and not math.isclose(v, float(there[k]), rel_tol=1e-4, abs_tol=1e-6)}
        if changed:  # by the edits that follow the last step
            tracker.log_metrics(changed, step=step + 1)
        tracker.tag("mlflow.note.content", sentence_of(run.path))
        draw_run(run.path)
    _end(run, tracker, "finished", "")


def _end(run: RunDirectory, tracker: Logger | None, state: str, reason: str, *, speaks: bool | None = None) -> None:
    """Write the status, and close the MLflow run with what is in the folder; the first process does it, or the one that ``speaks``."""
    if not (is_rank_zero() if speaks is None else speaks):
        return
    try:
        run.set_status(state, reason)
    except RunError as error:  # a full disk; what has gone wrong before is worth more
        _say(str(error))
    if tracker is not None:
        files = run.artifacts()
        tracker.log_artifacts([file for file in files if file.parent != run.plots])
        tracker.log_artifacts([file for file in files if file.parent == run.plots], run.plots.name)
        tracker.finalize(state)


def _say(text: str) -> None:
    from rich.console import Console

    if is_rank_zero():
        Console(stderr=True, highlight=False).print(text, markup=False)
