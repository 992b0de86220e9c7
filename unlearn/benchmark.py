"""A model measured on benchmarks, whoever made it: one folder of results for each, in the form of a run's.

The lifecycle, with the place of every part::

    evaluate(model, benchmarks)
        find_subject: a model's folder, a hub id, a finished run        subject
        benchmark_configs: one configuration for each benchmark         config
        source.serve(); check; what is finished already is kept          data, tracking
        load_models: once for all benchmarks                            subject, restore
        for each benchmark, whatever became of the others:
            suite_of: the original and the gold model                   subject, evaluation
            Suite.measure -> results.json, samples.jsonl                evaluation, tracking
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.assembly import cache_folder, stage
from unlearn.config.benchmarks import OF_TRAINING, benchmark_configs
from unlearn.config.fingerprint import fingerprint, plain, to_yaml
from unlearn.config.layers import read_file
from unlearn.config.load import Origin
from unlearn.config.schema import RunConfig
from unlearn.errors import RunError, UnlearnError
from unlearn.launch import is_rank_zero
from unlearn.measuring import suite_of
from unlearn.registry import find
from unlearn.subject import KIND, MEASURED, Models, Subject, find_subject, load_models
from unlearn.tracking.files import read_json
from unlearn.tracking.manifest import update_manifest, write_manifest
from unlearn.tracking.rundir import MANIFEST, STATUS, RunDirectory, is_run, run_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.sources.base import Source
    from unlearn.evaluation.progress import StageBar
    from unlearn.evaluation.suite import Suite
    from unlearn.types import EntityData


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What came of it: folders of measured and of ``kept`` benchmarks by name, and the error of each that ``failed``."""

    folders: Mapping[str, Path] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    failed: Mapping[str, UnlearnError] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One benchmark, its rows read."""

    name: str
    config: RunConfig
    source: Source
    data: EntityData
    identity: dict[str, str]
    fingerprint: str

    @property
    def path(self) -> Path:
        return run_path(self.config.out, self.config.name)

    def watch(self, whose: str, suite: Suite, lm: PreTrainedModel | None) -> contextlib.AbstractContextManager[StageBar]:
        """A bar over the stages of one model's measurement."""
        from unlearn.evaluation.progress import StageBar

        wanted = self.config.trainer.progress_bar and is_rank_zero()
        return StageBar(", ".join(filter(None, (self.name, whose))), suite.stages(), wanted=wanted).watching(lm)


def default_folder(model: str) -> Path:
    """``evaluations/<model>``: the last part of a path, all of a hub id.

    >>> default_folder("/models/llama").as_posix(), default_folder("google/gemma-2-2b").as_posix()
    ('evaluations/llama', 'evaluations/google--gemma-2-2b')
    """
    path = Path(model).expanduser()
    return Path("evaluations") / (path.resolve().name if path.is_dir() or path.is_absolute() else model.replace("/", "--"))


def evaluate(
    model: str,
    benchmarks: Sequence[str] = (),
    sources: Sequence[Origin] = (),
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    base: str | None = None,
    force: bool = False,
    told: Callable[[str, UnlearnError], None] = lambda name, error: None,
) -> Evaluated:
    """Measure ``model`` on every benchmark; one that fails is told of at once, and the others go on.

    What the model comes with decides what is measured: answers, likelihood, membership, behaviour, utility, perplexity and repetition of
    any model; recognition with an SAE (section ``sae``, or a run's own); the distance to the original model with ``base`` (or a run's own).
    Nothing is trained and the model is not changed. Under torchrun the rows are shared out, and the first process writes.

    Args:
        model: folder of a model, hub id, or folder of a finished run.
        benchmarks: see ``benchmark_configs``.
        sources: see there.
        overrides: see there.
        out: folder of the results, one folder below it for each benchmark; None takes ``default_folder``.
        base: folder or hub id of the model that ``model`` was made from.
        force: whether finished benchmarks are measured again, and those of another model or configuration replaced.
        told: called with the name of a benchmark and its error.

    Raises:
        UnlearnError: the model cannot be loaded, or the configuration is wrong; nothing was measured.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    subject = find_subject(model, base)
    folder = default_folder(model) if out is None else out if out.name else out.resolve()
    own = None if subject.run is None else read_file(subject.run.config_path)
    place = None if subject.run is not None else subject.name
    configs = benchmark_configs(folder, benchmarks, sources, overrides, own=own, model=place)
    folders: dict[str, Path] = {}
    failed: dict[str, UnlearnError] = {}

    def fail(name: str, error: UnlearnError) -> None:
        failed[name] = error
        told(name, error)

    with _processes():
        with stage("model files"):
            identity = subject.identity(next(iter(configs.values())))
        plans = []
        for name, config in configs.items():
            try:
                plans.append(_plan(name, config, identity))
            except UnlearnError as error:
                fail(name, error)
        finished = _agreed([not force and _finished(plan) for plan in plans])
        kept = {plan.name: plan.path for plan, done in zip(plans, finished, strict=True) if done}
        todo = [plan for plan in plans if plan.name not in kept]
        if todo:
            models = load_models(subject, todo[0].config)
            for plan in todo:
                try:
                    folders[plan.name] = _measure(plan, subject, models, force)
                except UnlearnError as error:
                    fail(plan.name, error)
    return Evaluated(folders={name: path for name in configs if (path := {**kept, **folders}.get(name))}, kept=tuple(kept), failed=failed)


def _plan(name: str, config: RunConfig, identity: dict[str, str]) -> _Plan:
    """Read the rows of a benchmark, and name everything that decides what comes out."""
    from unlearn.data.checks import check_streams

    with stage(f"{name}: rows"):
        source = find("source", config.data.source, "data.source").load()(config.data, seed=config.seed, cache=cache_folder(config))
        data = source.serve()
        check_streams(data)
    said: dict[str, Any] = {section: plain(getattr(config, section)) for section in MEASURED}
    said["model"] = {key: said["model"][key] for key in ("dtype", "attention")}
    said["sae"] = {key: value for key, value in said["sae"].items() if key not in ("path", "route", "heldout_path")}
    del said["data"]["batch"]
    return _Plan(
        name=name,
        config=config,
        source=source,
        data=data,
        identity=identity,
        fingerprint=fingerprint({**said, "identity": identity, "rows": data.fingerprint}),
    )


def _finished(plan: _Plan) -> bool:
    manifest = read_json(plan.path / MANIFEST)
    same = manifest.get("kind") == KIND and manifest.get("fingerprint") == plan.fingerprint
    return same and read_json(plan.path / STATUS).get("state") == "finished"


def _claim(plan: _Plan, subject: Subject, force: bool) -> RunDirectory:
    """The folder of a benchmark, new; what was left unfinished there is replaced.

    Raises:
        RunError: it holds something else than a measurement, or, without ``force``, that of another model or configuration.
    """
    if not is_rank_zero():
        return RunDirectory(plan.path)
    path, config = plan.path, plan.config
    if is_run(path):
        if (manifest := read_json(path / MANIFEST)).get("kind") != KIND:
            raise RunError(f"--out must be a folder for measurements; found a run in {path}. Take another one.")
        if not force and read_json(path / STATUS).get("state") == "finished":
            raise RunError(
                f"{path} must be new, or hold the same measurement; found one of {manifest.get('subject')} with another model, "
                "other rows or another configuration. Take another --out, or replace it by --force."
            )
    run = RunDirectory.create(config.out, config.name, exist="replace")
    facts = {
        "kind": KIND,
        "fingerprint": plan.fingerprint,
        "subject": subject.name,
        "base": subject.base,
        "benchmark": plan.name,
        "identity": plan.identity,
        "data_fingerprint": plan.data.fingerprint,
        "notes": dict(plan.data.notes),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }
    write_manifest(run, config, facts)
    settings = plain(config)
    run.write_config(to_yaml({key: value for key, value in settings.items() if key not in OF_TRAINING or key in ("name", "out")}))
    return run


def _measure(plan: _Plan, subject: Subject, models: Models, force: bool) -> Path:
    """Measure one benchmark and write what was found; whatever happens, the status says how it ended."""
    import torch

    run = _claim(plan, subject, force)
    state, reason = "failed", ""
    try:
        if plan.config.trainer.threads:
            torch.set_num_threads(plan.config.trainer.threads)
        with torch.no_grad():
            suite, facts = suite_of(plan.config, plan.source, plan.data, models, plan.identity, plan.watch)
            if is_rank_zero():
                update_manifest(run, facts)
            _write(plan, suite, models, run)
        state = "finished"
    except KeyboardInterrupt:
        state, reason = "killed", "interrupted"
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UnlearnError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        if is_rank_zero():
            run.set_status(state, reason)
    return run.path


def _write(plan: _Plan, suite: Suite, models: Models, run: RunDirectory) -> None:
    from unlearn.callbacks.evaluation import sample_answers

    with plan.watch("", suite, models.lm) as bar:
        measured = suite.measure(models.lm, bar.stage)
        if suite.base is None and suite.meter is not None:
            bar.stage("calibration")
            measured.results.update(suite.calibration(models.lm))
        if suite.original is not None:
            bar.stage("depth")
            measured.results.update(suite.deep(models.lm))
    if is_rank_zero():
        run.write_results(suite.final(measured))
        run.append_samples(sample_answers(plan.data.evaluation, plan.config.evaluation.samples, measured, suite.base))


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """The process group of what torchrun has started; it passes results on, not tensors, so that gloo does on any machine."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch.distributed as dist

    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        if mine:
            dist.destroy_process_group()


def _agreed(value: list[bool]) -> list[bool]:
    """The first process's ``value``, in all of them: files may appear between two looks."""
    from unlearn.evaluation.shard import place

    if place()[1] == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]
