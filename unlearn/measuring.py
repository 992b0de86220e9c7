"""What measures a model that is no run's own: reader, SAE with its latents, and the suite of all metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from unlearn.assembly import cache_folder, cache_key, evenly, gold_loader, load_heldout, stage
from unlearn.config.schema import RunConfig
from unlearn.subject import KIND, MEASURED, Models, contents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.data.sources.base import Source
    from unlearn.data.tokenize import TokenRow
    from unlearn.evaluation.latent import LatentMeter
    from unlearn.evaluation.progress import StageBar
    from unlearn.evaluation.suite import Suite
    from unlearn.latents.selection import Selection
    from unlearn.models.hook_check import HookReport
    from unlearn.models.sae import FrozenSAE
    from unlearn.types import EntityData, Row, TokenBatch


def reader_of(config: RunConfig, source: Source, data: EntityData, models: Models) -> Reader:
    """What turns rows into tokens, as the source asks."""
    from unlearn.data.chat import chat_format
    from unlearn.data.reader import Reader

    e = config.evaluation
    return Reader(
        tokenizer=models.tokenizer, prompt_format=chat_format(source.prompt_format, models.tokenizer, config.model.chat),
        refusals=data.refusals, max_length=config.data.max_length, batch_size=e.batch_size, max_new_tokens=e.max_new_tokens,
    )  # fmt: skip


def _frozen_key(config: RunConfig, data: EntityData, reader: Reader, models: Models, identity: Mapping[str, str], layer: int) -> str:
    """Key of what is read from the frozen model."""
    from unlearn.models.bits import weights_name

    who = identity["model"] if models.original is None else identity["base"]
    if models.assembly is not None:
        who = f"{models.assembly.facts['model_fingerprint']} {models.assembly.facts['sae_fingerprint']}"
    beside = [identity[key] for key in ("sae", "heldout_sae", "tokenizer")]
    rows = data.fingerprint, reader.prompt_format, reader.max_length
    return cache_key(KIND, who, beside, rows, weights_name(config.model), layer, config.latents)


def anchors_of(
    config: RunConfig, data: EntityData, reader: Reader, models: Models, identity: Mapping[str, str]
) -> tuple[FrozenSAE | None, Selection | None]:
    """The SAE with the latents that tell known from unknown names in the frozen model; None and None without an SAE."""
    meter, selection = recognition_of(config, data, reader, models, identity)
    return (None if meter is None else meter.sae), selection


def recognition_of(
    config: RunConfig, data: EntityData, reader: Reader, models: Models, identity: Mapping[str, str]
) -> tuple[LatentMeter | None, Selection | None]:
    """What measures recognition against the frozen model, and its latents; None and None without an SAE."""
    from unlearn.evaluation.suite import Suite

    own = models.assembly
    if own is not None and own.suite.meter is not None:
        return own.suite.meter, own.suite.selection
    if models.sae is None:
        return None, None
    layer = max(models.sae.layers)
    suite = Suite(data=data, generic=[], reader=reader, config=config.evaluation, seed=config.seed, layer=layer)
    with stage("known and unknown names"):
        _add_recognition(suite, layer, models.sae, config, models, _frozen_key(config, data, reader, models, identity, layer))
    return suite.meter, suite.selection


Watch = Callable[[str, "Suite", "PreTrainedModel | None"], AbstractContextManager["StageBar"]]
"""``watch(whose, suite, lm)`` shows a bar while the original or the gold model is measured."""


def suite_of(
    config: RunConfig, source: Source, data: EntityData, models: Models, identity: dict[str, str], watch: Watch
) -> tuple[Suite, dict[str, object]]:
    """What measures the model on the rows, and facts for the manifest; the original and the gold model are measured here, once.

    Without an original model the anchors of recognition are what the model itself makes of known and unknown names.
    """
    from unlearn.data.tokenize import text_rows
    from unlearn.evaluation.suite import Suite
    from unlearn.models.decoder import blocks_of, device_of
    from unlearn.models.reference import ReferenceStore

    own = models.assembly
    if own is not None and data == own.data and all(getattr(config, name) == getattr(own.config, name) for name in MEASURED):
        return own.suite, {"hook": own.facts["hook"]}
    e = config.evaluation
    reader = reader_of(config, source, data, models)
    generic = reader.tokens(text_rows(data.generic, first_id=-1))
    layer = len(blocks_of(models.lm)) // 2 if models.sae is None else max(models.sae.layers)
    suite = Suite(data=data, generic=generic, reader=reader, config=e, seed=config.seed, layer=layer)
    frozen = _frozen_key(config, data, reader, models, identity, layer)
    folder, device = cache_folder(config), device_of(models.lm)
    facts: dict[str, object] = {}
    if models.sae is not None:
        with stage("known and unknown names"):
            report = _add_recognition(suite, layer, models.sae, config, models, frozen)
            facts["hook"] = {"layer": layer, "fvu": report.fvu, "l0": report.l0, "shares": report.shares}
    if models.original is not None:
        original = models.original
        if generic:
            path = folder / "reference" / cache_key(frozen, "generic")
            suite.reference = ReferenceStore.build(original(), reader.batches(generic, device), layers=(layer,), path=path)
        suite.original = original if e.depth else None
        with watch("original model", suite, original()) as bar:
            suite.measure_base(original(), folder / "base" / f"{cache_key(frozen, e, config.seed)}.json", bar.stage)
    if e.gold is not None:
        assets = source.assets(gold=e.gold == "source", progress=config.trainer.progress_bar)
        load_gold = gold_loader(config, e.gold, assets, device)
        place = assets.gold if e.gold == "source" and assets is not None else e.gold
        path = folder / "gold" / f"{cache_key(frozen, e, config.seed, contents(str(place)))}.json"
        with watch("gold model", suite, None) as bar:
            suite.measure_gold(load_gold, path, bar.stage)
        suite.gold_model = load_gold
    return suite, facts


def _add_recognition(suite: Suite, layer: int, sae: FrozenSAE, config: RunConfig, models: Models, frozen: str) -> HookReport:
    """Hook-point check, banks, latents, and what measures recognition with them."""
    from unlearn.data.swap import matched_rows
    from unlearn.evaluation.latent import GROUPS, LatentMeter, LatentRows
    from unlearn.evaluation.places import PlaceMeter, places
    from unlearn.latents.banks import build_banks
    from unlearn.latents.selection import select_latents
    from unlearn.models.decoder import blocks_of, device_of
    from unlearn.models.hook_check import check_hook_point, measure_hook_point

    data, reader, c, folder = suite.data, suite.reader, config.latents, cache_folder(config)
    lm = models.lm if models.original is None else models.original()
    device = device_of(lm)

    def made(rows: Sequence[Row | TokenRow]) -> list[TokenBatch]:
        return reader.batches(rows, device)

    streams = {name: reader.tokens(data.streams[name]) for name in ("known", "unknown")}
    sample = made([*streams["known"][:64], *suite.generic[:64]])
    if config.sae.check_hook:
        report = check_hook_point(lm, sae, sample, layer, config.sae.max_fvu)
    else:
        report = measure_hook_point(lm, sae, sample, layer)
    strangers = [row.mentions[0] for row in data.streams["unknown"] if row.mentions]
    swapped = matched_rows(data.streams["forget"], strangers, c.matched, config.seed)
    known, unknown = (made(evenly(streams[name], c.bank_rows)) for name in ("known", "unknown"))
    banks = build_banks(lm, known, unknown, made(swapped), sae, folder / "banks" / f"{cache_key(frozen, config.seed)}.safetensors")
    suite.selection = select_latents(sae, banks, c, config.seed)
    groups = {g: LatentRows.of(reader.tokens(data.latent[g]), [row.entity for row in data.latent[g]]) for g in GROUPS}
    suite.meter = LatentMeter(groups, banks, suite.selection, sae, suite.config, reader.pad_id, config.seed)
    if suite.config.places:
        heldout = load_heldout(config.sae.heldout_path or (models.assets.heldout_sae if models.assets else None), device)
        where = places(layer, len(blocks_of(lm)), sae, heldout)
        suite.places = PlaceMeter(groups, where, suite.config, reader.pad_id, config.seed)
        suite.places.remember(lm, folder / "places" / f"{cache_key(frozen, heldout.layer if heldout else None)}.safetensors")
    return report
