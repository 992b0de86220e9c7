"""A model under attack: which attacks, what each gets out, kept attack by attack so that an interruption loses one at most.

The lifecycle, with the place of every part::

    attack(model, suite)
        find_subject: a finished run, a model's folder, a hub id        subject
        attack_settings: one configuration for each attack              config
        load_models; Facts of the target and of the control             subject, attacks
        for each attack, whatever became of the others:
            Attack.run on the model, then on the gold model             attacks      (the latter once, cached)
            attacks/<name>.json, results.json, plots/attack_<name>      tracking, report
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.assembly import cache_folder, cache_key, stage
from unlearn.attack_files import SKIPPED, folder_of, keep, kept, track
from unlearn.config.attacks import attack_settings, separate
from unlearn.config.benchmarks import benchmark_configs
from unlearn.config.fingerprint import plain
from unlearn.config.layers import Layer, read_file
from unlearn.config.load import Origin
from unlearn.errors import RunError, UnlearnError
from unlearn.functional.judgement import Judgement, judge
from unlearn.measuring import anchors_of, reader_of
from unlearn.registry import find
from unlearn.subject import Models, Subject, contents, find_subject, load_models
from unlearn.tracking.files import read_json, write_atomic
from unlearn.tracking.rundir import RunDirectory

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from unlearn.attacks.base import Attack, AttackContext, Outcome
    from unlearn.config.schema import RunConfig
    from unlearn.data.sources.base import Source
    from unlearn.types import EntityData

Progress = Callable[[str, float], None]
"""``progress(attack, share)``: how far one attack has come."""


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What came of it: the folder, results by key, and which attacks were ``kept`` from before, ``skipped`` (with what they lack) or
    ``failed``."""

    path: Path
    names: tuple[str, ...]
    results: Mapping[str, Any] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, UnlearnError] = field(default_factory=dict)

    @property
    def judgement(self) -> Judgement:
        """The verdict on the results, those of the run itself included."""
        return judge({key: value for key, value in self.results.items() if isinstance(value, int | float)})


@dataclass(kw_only=True)
class _Target:
    """The model that is attacked, and everything that decides what comes out."""

    subject: Subject
    config: RunConfig
    models: Models
    run: RunDirectory
    context: AttackContext
    identity: Mapping[str, str]
    gold: Callable[[], PreTrainedModel] | None = None
    gold_identity: str = ""

    def key(self, name: str, settings: Any) -> str:
        """What tells one attack on this model from others."""
        return cache_key("attack", name, json.dumps(plain(settings), sort_keys=True), sorted(self.identity.items()), self._rows())

    def gold_key(self, name: str, settings: Any) -> str:
        """The same for the gold model, which many runs share."""
        beside = [self.identity["base"], self.identity["sae"]]
        if self.models.assembly is not None:
            beside = [self.models.assembly.facts[key] for key in ("model_fingerprint", "sae_fingerprint")]
        return cache_key("attack gold", name, json.dumps(plain(settings), sort_keys=True), self.gold_identity, beside, self._rows())

    def _rows(self) -> tuple[object, ...]:
        reader = self.context.reader
        return self.context.data.fingerprint, reader.prompt_format, reader.max_length, self.config.seed, self.config.latents


def attack(
    model: str,
    suite: str = "quick",
    sources: Sequence[Origin] = (),
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    base: str | None = None,
    force: bool = False,
    told: Callable[[str, UnlearnError], None] = lambda name, error: None,
    progress: Progress = lambda name, share: None,
) -> Attacked:
    """Attack a model; what was attacked before in the same way is kept, so that the same call goes on after an interruption.

    The model's files and weights are not changed: attacks that train or round do so on a copy, and a hash is compared after each.

    Args:
        model: folder of a finished run (results go there), folder of a model, or hub id.
        suite: ``quick``, ``full``, or names of attacks with commas.
        sources: YAML files or mappings: the section ``attack``; for a model that is no run also ``data``, ``model``, ``sae``, ...
        overrides: ``key=value`` texts, they win. ``evaluation.gold`` names the model that never saw the target.
        out: folder of the results, for a model that is no run; None takes ``attacks/<model>``.
        base: folder or hub id of the model that ``model`` was made from; a run knows it.
        force: whether finished attacks are made again.
        told: called with the name of an attack and its error.
        progress: told how far each attack has come.

    Raises:
        UnlearnError: the model cannot be loaded or the configuration is wrong; nothing was attacked.
        RunError: an attack has changed the model (a defect of the attack).
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    mine, rest = separate(sources, overrides)
    settings = attack_settings(suite, mine)
    target = _prepare(find_subject(model, base), rest, out)
    before = weights_hash(target.context.lm)
    done: list[str] = []
    skipped: dict[str, str] = {}
    failed: dict[str, UnlearnError] = {}
    for name, config in settings.items():
        key = target.key(name, config)
        if not force and kept(target.run, name, key, gold=target.gold is not None):
            done.append(name)
            continue
        made: Attack = find("attack", name).load()(config)
        lacks = made.missing(target.context)
        if lacks is not None:
            skipped[name] = lacks
            keep(target.run, name, {"fingerprint": key, SKIPPED: lacks})
            continue
        try:
            _attack_one(target, made, key, progress)
        except UnlearnError as error:
            failed[name] = error
            told(name, error)
        if weights_hash(target.context.lm) != before:
            raise RunError(f"The attack {name!r} must leave the model as it is; found other weights afterwards.")
    if target.models.assembly is not None:
        track(target.run, target.models.assembly.config, [n for n in settings if n not in done and n not in skipped and n not in failed])
    results = read_json(target.run.results_path)
    return Attacked(path=target.run.path, names=tuple(settings), results=results, kept=tuple(done), skipped=skipped, failed=failed)


def _attack_one(target: _Target, made: Attack, key: str, progress: Progress) -> None:
    """Attack the model and, where there is one, the gold model; keep everything."""
    from unlearn.attacks.base import Outcome
    from unlearn.report.attacks import draw_attack

    name, shares = made.name, 2 if target.gold is not None else 1
    started, cpu = time.monotonic(), time.process_time()
    found = made.run(replace(target.context, tick=lambda share: progress(name, share / shares)))
    seconds = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
    record = {"fingerprint": key, "config": plain(made.config), **seconds, "outcome": found.record()}
    results = _results(target, made, found)
    if target.gold is not None:
        record["gold"] = known = _on_gold(target, made, progress)
        results |= {} if known is None else _of_gold(target, made, Outcome.of_record(known))
    record["results"] = results
    keep(target.run, name, record)
    draw_attack(target.run.path, name)


def _on_gold(target: _Target, made: Attack, progress: Progress) -> dict[str, Any] | None:
    """The outcome on the gold model, from the cache where another run had it; None where the attack makes no sense there."""
    if target.gold is None or made.missing(target.context.against(target.context.lm)) is not None:
        return None
    path = cache_folder(target.config) / "attacks" / f"{target.gold_key(made.name, made.config)}.json"
    if known := read_json(path):
        return known
    context = replace(target.context.against(target.gold()), tick=lambda share: progress(made.name, (1 + share) / 2))
    known = made.run(context).record()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(known))
    return known


def _results(target: _Target, made: Attack, found: Outcome) -> dict[str, float]:
    return found.results(f"attack/{made.name}", made.measure, target.config.evaluation.bootstrap, target.config.seed)


def _of_gold(target: _Target, made: Attack, found: Outcome) -> dict[str, float]:
    """The headline of the gold model: ``attack/<name>_gold`` and ``_gold_excess`` with its interval."""
    key, every = f"attack/{made.name}", _results(target, made, found)
    names = {f"{key}_{made.measure}": f"{key}_gold", f"{key}_control": f"{key}_gold_control", f"{key}_excess": f"{key}_gold_excess"}
    names |= {f"{key}_excess/ci_{end}": f"{key}_gold_excess/ci_{end}" for end in ("low", "high")}
    return {new: every[old] for old, new in names.items() if old in every}


def _prepare(subject: Subject, layers: Sequence[Layer], out: Path | None) -> _Target:
    """Load the model, its rows, and what stands beside it."""
    from unlearn.attacks.base import AttackContext
    from unlearn.attacks.facts import control_facts, target_facts
    from unlearn.models.decoder import device_of

    own = None if subject.run is None else read_file(subject.run.config_path)
    folder = folder_of(subject, out)
    configs = benchmark_configs(folder, (), layers, own=own, model=None if subject.run is not None else subject.name)
    if len(configs) != 1:
        raise RunError(f"A model is attacked on one data source; found {len(configs)} in `benchmarks`: {', '.join(configs)}.")
    config = next(iter(configs.values()))
    source: Source = find("source", config.data.source, "data.source").load()(config.data, seed=config.seed, cache=cache_folder(config))
    with stage("model files"):
        identity = subject.identity(config)
    models = load_models(subject, config)
    with stage("rows"):
        data: EntityData = models.assembly.data if models.assembly is not None else source.serve()
        facts = target_facts(data)
        control = control_facts(data, facts, config.seed)
    reader = reader_of(config, source, data, models)
    sae, selection = anchors_of(config, data, reader, models, identity)
    acts = models.assembly is not None and models.assembly.facts["intervention"]
    context = AttackContext(
        lm=models.lm.eval(), reader=reader, data=data, target=facts, control=control, seed=config.seed, original=models.original,
        bare=models.original if acts else None, sae=sae, selection=selection, prompts=source.prompts(),
    )  # fmt: skip
    run = subject.run or RunDirectory(folder)
    target = _Target(subject=subject, config=config, models=models, run=run, context=context, identity=identity)
    if config.evaluation.gold is not None:
        _add_gold(target, source, device_of(models.lm))
    if subject.run is None:
        _claim(target, folder)
    return target


def _add_gold(target: _Target, source: Source, device: Any) -> None:
    from unlearn.assembly import gold_loader

    gold = target.config.evaluation.gold
    with stage("gold model"):
        assets = source.assets(gold=gold == "source", progress=target.config.trainer.progress_bar)
    target.gold = gold_loader(target.config, str(gold), assets, device)
    target.gold_identity = contents(str(assets.gold) if gold == "source" and assets is not None else str(gold))


def _claim(target: _Target, folder: Path) -> None:
    """The folder of a model that is no run."""
    from unlearn.attack_files import claim

    subject = {"subject": target.subject.name, "base": target.subject.base, "identity": dict(target.identity)}
    claim(folder, target.config, {**subject, "data_fingerprint": target.context.data.fingerprint})


def weights_hash(lm: nn.Module) -> str:
    """SHA-256 over every parameter and buffer of a model, by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted([*lm.named_parameters(), *lm.named_buffers()], key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
