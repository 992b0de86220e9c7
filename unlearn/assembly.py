"""The composition root: from a RunConfig to the objects of a run, built in one place and passed down."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.schema import ModelConfig, RunConfig, SAEConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.processes import is_rank_zero
from unlearn.registry import find
from unlearn.types import TokenBatch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unlearn.callbacks.cost import Cost
    from unlearn.callbacks.evaluation import Evaluation
    from unlearn.callbacks.latent import LatentDistance
    from unlearn.data.module import UnlearningDataModule
    from unlearn.data.tokenize import TokenRow
    from unlearn.evaluation.suite import Suite
    from unlearn.methods.base import Method
    from unlearn.models.sae import FrozenSAE
    from unlearn.models.trainable import TrainableReport
    from unlearn.module import UnlearningModule
    from unlearn.tracking.rundir import RunDirectory
    from unlearn.types import Assets, EntityData

RECIPE = "3"
"""Version of what is cached; raise it when banks, references or base measurements change their meaning."""


def cache_folder(config: RunConfig) -> Path:
    """Folder of everything that is built once: ``cache``, else ``UNLEARN_CACHE``, else ``~/.cache/unlearn``."""
    return Path(config.cache or os.environ.get("UNLEARN_CACHE") or Path.home() / ".cache" / "unlearn").expanduser()


@dataclass(kw_only=True)
class Assembly:
    """The objects of one run, ready to train."""

    config: RunConfig
    run: RunDirectory
    data: EntityData
    datamodule: UnlearningDataModule
    module: UnlearningModule
    suite: Suite
    latent: LatentDistance
    evaluation: Evaluation
    cost: Cost
    settings: dict[str, str]
    facts: dict[str, Any]


@contextlib.contextmanager
def stage(name: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on while it goes on; yields a function that names the part at hand."""
    from rich.console import Console

    with Console(stderr=True, quiet=not is_rank_zero()).status(f"{name} ...") as status:
        yield lambda part: status.update(f"{name}: {part} ...")


def cache_key(*parts: object) -> str:
    """Name of a cache entry, from everything that changes its content."""
    return hashlib.sha256(json.dumps([RECIPE, *map(str, parts)]).encode()).hexdigest()[:20]


def assemble(config: RunConfig, run: RunDirectory) -> Assembly:
    """Build every object of a run; what is read from the frozen model is read once and cached.

    Raises:
        UnlearnError: anything in the configuration, the data or the models that does not fit.
    """
    import lightning.pytorch as pl
    import torch

    from unlearn.callbacks.cost import Cost
    from unlearn.callbacks.evaluation import Evaluation
    from unlearn.callbacks.latent import LatentDistance
    from unlearn.data.chat import chat_format
    from unlearn.data.checks import check_streams
    from unlearn.data.module import UnlearningDataModule
    from unlearn.data.reader import Reader
    from unlearn.data.swap import matched_rows
    from unlearn.data.tokenize import batches
    from unlearn.evaluation.latent import GROUPS, LatentMeter, LatentRows
    from unlearn.evaluation.places import PlaceMeter, places
    from unlearn.evaluation.suite import Suite
    from unlearn.latents.banks import build_banks
    from unlearn.latents.selection import select_latents
    from unlearn.launch import frozen_device, trainer_settings
    from unlearn.methods.base import MethodContext
    from unlearn.models.bits import check_bits, weights_name
    from unlearn.models.decoder import blocks_of
    from unlearn.models.hook_check import check_hook_point, measure_hook_point
    from unlearn.models.identity import identity
    from unlearn.models.lm import load_lm
    from unlearn.models.reference import ReferenceStore
    from unlearn.models.route_sae import load_route_sae
    from unlearn.models.sae import load_sae
    from unlearn.module import UnlearningModule

    settings = trainer_settings(config.trainer)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    cache = cache_folder(config)
    device = frozen_device(settings)
    method_class = find("method", config.method.name, "method.name").load()
    check_bits(config.model, config.optim, device, settings["strategy"], method_class.trains)

    with stage("data"):
        source = find("source", config.data.source, "data.source").load()(config.data, seed=config.seed, cache=cache)
        needs = method_class.required(config.method)
        gold = config.evaluation.gold or ("source" if "gold" in needs else None)
        assets = source.assets(gold=gold == "source", progress=config.trainer.progress_bar)
        data = source.serve()
        check_streams(data)
    with stage("language model and SAE"):
        lm, tokenizer = load_lm(config.model, assets.model if assets else None, device)
        if config.sae.route is not None:
            check_routed(method_class, config)
            sae: FrozenSAE = load_route_sae(Path(config.sae.route).expanduser())
        else:
            sae = load_sae(config.sae, assets.sae if assets else None)
        sae.to(device)
        load_gold = None if gold is None else gold_loader(config, gold, assets, device)
        layer = max(sae.layers)
    with stage("tokens"):
        reader = Reader(
            tokenizer=tokenizer, prompt_format=chat_format(source.prompt_format, tokenizer, config.model.chat), refusals=data.refusals,
            max_length=config.data.max_length, batch_size=config.evaluation.batch_size, max_new_tokens=config.evaluation.max_new_tokens,
        )  # fmt: skip
        datamodule = UnlearningDataModule(
            data,
            tokenizer,
            reader.prompt_format,
            config.data,
            steps=config.optim.steps,
            seed=config.seed,
            accumulate=config.trainer.accumulate,
        )

    def on_device(rows: Sequence[TokenRow]) -> list[TokenBatch]:
        made = [b for _, b in batches(rows, config.evaluation.batch_size, reader.pad_id)]
        return [TokenBatch(*(t.to(device) for t in b)) for b in made]

    model_id = identity(config.model.path or assets.model, config.model.revision)
    sae_id = identity(
        config.sae.route or config.sae.path or (f"{config.sae.release}/{config.sae.sae_id}" if config.sae.release else assets.sae)
    )
    frozen = cache_key(
        model_id, sae_id, data.fingerprint, reader.prompt_format, weights_name(config.model), layer, config.latents, config.data.max_length
    )
    second = config.sae.heldout_path or (assets.heldout_sae if assets else None)
    with stage("hook point"):
        sample = on_device(datamodule.streams["known"][:64] + datamodule.generic[:64])
        if config.sae.check_hook:
            report = check_hook_point(lm, sae, sample, layer, config.sae.max_fvu)
        else:
            report = measure_hook_point(lm, sae, sample, layer)
    with stage("activation banks"):
        known, unknown = (on_device(evenly(datamodule.streams[s], config.latents.bank_rows)) for s in ("known", "unknown"))
        strangers = [row.mentions[0] for row in data.streams["unknown"] if row.mentions]
        matched = on_device(reader.tokens(matched_rows(data.streams["forget"], strangers, config.latents.matched, config.seed)))
        path = cache / "banks" / f"{cache_key(frozen, config.seed)}.safetensors"
        banks = build_banks(lm, known, unknown, matched, sae, path)
        selection = select_latents(sae, banks, config.latents, config.seed)

    streams = {s: datamodule.streams[s] for s in method_class.reference_streams_of(config.method)}
    n_blocks = len(blocks_of(lm))
    with stage("reference"):
        rows = [*datamodule.generic, *(row for stream in streams.values() for row in stream)]
        layers = tuple(dict.fromkeys((*sae.layers, *method_class.reference_layers(config.method, layer, n_blocks))))
        path = cache / "reference" / cache_key(frozen, sorted(streams), layers)
        reference = ReferenceStore.build(lm, on_device(rows), layers=layers, path=path)
    datamodule.active_streams = method_class.streams_of(config.method)
    context = MethodContext(
        n_blocks=n_blocks, hook_layer=layer, sae=sae, banks=banks, selection=selection, reference=reference,
        data=data, reader=reader, gold=load_gold, seed=config.seed,
    )  # fmt: skip
    method = method_class(config.method, context.only(needs)).to(device)
    groups = {g: LatentRows.of(datamodule.latent[g], [row.entity for row in data.latent[g]]) for g in GROUPS}
    meter = LatentMeter(groups, banks, selection, sae, config.evaluation, reader.pad_id, config.seed)
    suite = Suite(
        data=data, generic=datamodule.generic, reader=reader, meter=meter, selection=selection,
        reference=reference, config=config.evaluation, layer=layer, seed=config.seed,
    )  # fmt: skip
    if config.evaluation.places:
        with stage("recognition of the original model"):
            heldout = load_heldout(second, device)
            suite.places = PlaceMeter(groups, places(layer, n_blocks, sae, heldout), config.evaluation, reader.pad_id, config.seed)
            suite.places.remember(lm, cache / "places" / f"{cache_key(frozen, second and identity(second))}.safetensors")
    if config.evaluation.depth:
        suite.original = lambda: load_lm(config.model, assets.model if assets else None, device)[0]
        suite.gold_model = load_gold
    latent = LatentDistance(meter, config.evaluation.every, run)
    latent.remember(lm)
    with stage("the original model") as announce:
        measured = cache_key(frozen, second and identity(second), config.evaluation, config.seed)
        suite.measure_base(lm, cache / "base" / f"{measured}.json", announce)
    if load_gold is not None:
        with stage("the gold model") as announce:
            gold_id = identity(assets.gold if gold == "source" and assets is not None and assets.gold is not None else str(gold), None)
            suite.measure_gold(load_gold, cache / "gold" / f"{cache_key(measured, gold_id)}.json", announce)
    lm, trainable = select_weights(lm, method, config.model)
    with stage("method"):
        method.setup(lm)
        method.to(device)
    return Assembly(
        config=config,
        run=run,
        data=data,
        datamodule=datamodule,
        module=UnlearningModule(lm, method, config.optim),
        suite=suite,
        latent=latent,
        evaluation=Evaluation(suite, run, config.evaluation.samples),
        cost=Cost(),
        settings=settings,
        facts={
            "data_fingerprint": data.fingerprint,
            "model_fingerprint": model_id,
            "sae_fingerprint": sae_id,
            "hook": {"layer": layer, "fvu": report.fvu, "l0": report.l0, "shares": report.shares},
            "trained_parameters": sum(p.numel() for p in (*lm.parameters(), *method.parameters()) if p.requires_grad),
            "parameters": trainable.n_total,
            "notes": dict(data.notes),
            "intervention": method.intervention,
        },
    )


def gold_loader(config: RunConfig, gold: str, assets: Assets | None, device: torch.device) -> Callable[[], PreTrainedModel]:
    """What loads the model that never saw the forget entities.

    Raises:
        ConfigError: the source is to bring it along and brings none.
        ModelError: it is neither a directory nor a hub id.
    """
    from unlearn.models.lm import load_lm, locate_model

    if gold != "source":
        locate_model(gold, "evaluation.gold")
    place = assets.gold if assets is not None else None
    if gold == "source" and place is None:
        raise ConfigError(
            f"evaluation.gold must be a directory or hub id with data.source '{config.data.source}', which brings no gold model."
        )
    named = replace(config.model, path=None if gold == "source" else gold, revision=None, tokenizer=None)
    return lambda: load_lm(named, place, device)[0]


def load_heldout(place: str | Path | None, device: torch.device) -> FrozenSAE | None:
    """The second SAE, for measurement only, from its directory; None where there is none."""
    from unlearn.models.sae import load_sae

    return None if place is None else load_sae(SAEConfig(path=str(place)), None).to(device)


def check_routed(method_class: type[Method], config: RunConfig) -> None:
    """Refuse ``sae.route`` with a method that needs an SAE of one block.

    Raises:
        ConfigError: the method is one.
    """
    if not method_class.takes_routed(config.method):
        raise ConfigError(
            f"sae.route must be null with method.name '{config.method.name}', whose SAE reads one block; found {config.sae.route!r}."
        )


def select_weights(lm: Any, method: Method, config: ModelConfig) -> tuple[Any, TrainableReport]:
    """Free the weights that are trained; what the method's paper trains where the configuration leaves the choice open."""
    from unlearn.models.trainable import TrainableReport, select_trainable

    if not method.trains:
        lm.requires_grad_(False)
        return lm, TrainableReport((), 0, sum(p.numel() for p in lm.parameters()), ())
    suggested = method.trainable(method.context.n_blocks)
    if suggested is not None and config.trainable == TrainableConfig():
        return select_trainable(lm, replace(config, trainable=suggested), method.deepest_layer())
    auto = method.forget_layer() if config.trainable.blocks == "auto" else None
    return select_trainable(lm, config, method.deepest_layer() if auto is None else auto)


def evenly(rows: Sequence[TokenRow], most: int) -> list[TokenRow]:
    """At most ``most`` rows, evenly spread over the list."""
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else list(rows)
