"""What ``unlearn doctor CONFIG`` asks of a configuration: is it valid, are its rows usable, are its models there and do they fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unlearn.assembly import cache_folder, check_routed
from unlearn.cli.anchors import power
from unlearn.cli.arguments import load
from unlearn.cli.doctor import Check, Finding, Wishes
from unlearn.cli.forecast import forecast, shares
from unlearn.cli.pieces import Pieces
from unlearn.cli.weights import hook_point, labels
from unlearn.config.schema import RunConfig
from unlearn.errors import ModelError, UnlearnError, did_you_mean
from unlearn.registry import find
from unlearn.types import STREAMS

REMEDIES = {
    "model": "download it once with network access (hf download ID), or set model.path to a folder; HF_HUB_OFFLINE=1 then uses the cache",
    "sae": "sae.release and sae.sae_id name a public SAE, sae.path a SAELens folder; the first run with network access fetches it",
    "hook": "take the SAE that was trained on this model and layer (sae.layer), or raise sae.max_fvu if you know why it fits badly",
    "labels": "`unlearn label CONFIG --entities FILE` asks about names of your own",
    "packages": "pip install -c constraints.txt -e . installs the tested versions",
    "disk": "free some space, or set `out` and `cache` (UNLEARN_CACHE) to another disk",
    "memory": "the estimate itself failed, so the run may too: run it once with optim.steps=1",
}
"""What to do when a check breaks off."""


class Inspection:
    """The runs that ``words`` describe, empty if they describe none, and the checks of them."""

    def __init__(self, words: Sequence[str], wishes: Wishes = Wishes()) -> None:  # noqa: B008 a frozen default
        self.words, self.wishes = words, wishes
        self.runs: list[RunConfig] = []
        if words:
            with suppress(UnlearnError):  # reported by ``valid``
                self.runs = load(words)

    def checks(self) -> list[tuple[str, Check]]:
        """(name, check); what several runs share is looked at once."""
        found: list[tuple[str, Check]] = [("config", self.valid)]
        seen: list[tuple[str, Any]] = []
        for run in self.runs:
            pieces = Pieces(run)
            place, rows = (run.data, run.model), partial(getattr, pieces, "data")
            parts: list[tuple[str, Any, Check]] = [
                ("trainer", (run.trainer, run.optim.name, run.model), partial(_trainer, pieces, self.wishes.gpu_memory is not None)),
                ("data", (run.data, run.seed), partial(_data, pieces)),
                ("power", (run.data, run.evaluation, run.seed), _after("power", "data", rows, partial(power, pieces))),
                ("batch", (run.data, run.trainer, run.method.name), partial(_batch, pieces, self.wishes.devices)),
                ("model", place, partial(_model, pieces)),
                ("sae", (*place, run.sae), partial(_sae, pieces)),
                ("memory", replace(run, name=""), partial(forecast, pieces, self.wishes.gpu_memory, self.wishes.devices)),
            ]
            if not self.wishes.quick:
                there = partial(_all_there, pieces)
                parts.insert(6, ("hook", (*place, run.sae), _after("hook", "model, SAE or data", there, partial(hook_point, pieces))))
            if self.wishes.label is not None:
                parts.append(("labels", place, partial(labels, run, self.wishes.label)))
            for what, key, check in parts:
                if (what, key) not in seen:
                    seen.append((what, key))
                    named = what in ("batch", "memory") and len(self.runs) > 1
                    found.append((what, partial(_named, run.name, check) if named else check))
        return found

    def remedy(self, what: str) -> str:
        """What to do when the check ``what`` breaks off."""
        if what == "data":
            known = dict.fromkeys(_public(run) for run in self.runs)
            return "; ".join(text for text in known if text)
        return REMEDIES.get(what, "")

    def valid(self) -> Iterator[Finding]:
        """Load again, so that what is wrong is reported here."""
        runs = load(self.words)
        names = ", ".join(run.name for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
        yield Finding("ok", "config", f"{len(runs)} run{'s' * (len(runs) > 1)}: {names}")


def _named(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check that concerns one run of several."""
    yield from (replace(finding, text=f"{name}: {finding.text}") for finding in check())


def _after(what: str, needed: str, reach: Callable[[], object], check: Check) -> Check:
    """``check``, or where ``reach`` raises what another check reports already, one line that says so."""

    def run() -> Iterator[Finding]:
        try:
            reach()
        except UnlearnError:
            yield Finding("warn", what, f"not looked at, since {needed} cannot be read (see above)")
            return
        yield from check()

    return run


def _all_there(pieces: Pieces) -> object:
    return pieces.model_place, pieces.lm_config, pieces.tokenizer, pieces.data, pieces.sae


def _public(run: RunConfig) -> str:
    """Where the rows of a source can be had."""
    address = Pieces(run).source.where()
    return f"{run.data.source} is public at {address}: download its files and set data.root" if address else ""


def _trainer(pieces: Pieces, gpus: bool) -> Iterator[Finding]:
    import torch

    from unlearn.launch import check_sharded, frozen_device, trainer_settings
    from unlearn.models.bits import check_bits

    run = pieces.run
    settings = trainer_settings(run.trainer)
    if settings["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        yield Finding(
            "fail", "trainer", f"trainer.accelerator must be one that torch finds; found {settings['accelerator']!r} and no CUDA device."
        )
    else:
        yield Finding("ok", "trainer", ", ".join(f"{key} {value}" for key, value in settings.items()))
    check_sharded(settings, run)
    device = torch.device("cuda") if gpus else frozen_device(settings)
    check_bits(run.model, run.optim, device, settings["strategy"], pieces.method.trains)


def _data(pieces: Pieces) -> Iterator[Finding]:
    from unlearn.data.checks import check_streams

    run, data = pieces.run, pieces.data
    check_streams(data)
    streams = ", ".join(f"{name} {len(data.streams[name])}" for name in STREAMS)
    yield Finding("ok", "data", f"{run.data.source}: rows of {streams}; measured on {', '.join(data.evaluation)}")
    for name in STREAMS:
        wanted = getattr(run.data.batch, name)
        if wanted > len(data.streams[name]):
            text = f"data.batch.{name} is {wanted}, more than the {len(data.streams[name])} rows of the stream: a step sees rows twice."
            yield Finding("warn", "data", text, f"data.batch.{name}={len(data.streams[name])}")


def _batch(pieces: Pieces, devices: int | None) -> Iterator[Finding]:
    run = pieces.run
    yield from shares(run, pieces.method.streams_of(run.method) if run.optim.steps else (), devices)


def _model(pieces: Pieces) -> Iterator[Finding]:
    run = pieces.run
    if run.model.path is None and pieces.assets is None:
        yield _brought(run, "model", "model.path")
        return
    lm, tokenizer = pieces.lm_config.get_text_config(), pieces.tokenizer
    if not tokenizer.is_fast:
        yield Finding("fail", "model", f"the tokenizer must be a fast one; found {type(tokenizer).__name__}.", "set model.tokenizer")
    place = run.model.path or f"of the source {run.data.source}"
    yield Finding("ok", "model", f"{place}: {lm.model_type}, {lm.num_hidden_layers} blocks of width {lm.hidden_size}")


def _sae(pieces: Pieces) -> Iterator[Finding]:
    run = pieces.run
    if run.sae.release is not None:
        yield _release(run.sae.release, str(run.sae.sae_id))
    elif run.sae.path is not None or run.sae.route is not None or pieces.sae_default is not None:
        lm = None
        with suppress(ModelError):  # reported by ``_model``
            lm = pieces.lm_config and pieces.lm_config.get_text_config()
        look = _sae_folder if run.sae.route is None else _route_folder
        yield look(Path(str(run.sae.path or run.sae.route or pieces.sae_default)).expanduser(), run, lm)
    else:
        yield _brought(run, "sae", "sae.path or sae.release")


def _brought(run: RunConfig, what: str, key: str) -> Finding:
    from unlearn.data.sources.base import Source

    if type(Pieces(run).source).assets is Source.assets:
        return Finding("fail", what, f"{key} must be given, since the source {run.data.source} brings no models; found none.")
    return Finding("ok", what, f"comes with the source {run.data.source}, which builds it when the cache ({cache_folder(run)}) has none")


def _sae_folder(folder: Path, run: RunConfig, lm: Any) -> Finding:
    """A SAELens directory, against the language model where that is known."""
    from unlearn.models.sae import SAE_FILES, hook_layer

    missing = [name for name in SAE_FILES if not (folder / name).is_file()]
    if missing:
        return Finding("fail", "sae", f"sae.path must be a SAELens directory; found no {missing[0]} in {folder}.")
    facts = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    hook = str(facts.get("metadata", {}).get("hook_name") or facts.get("hook_name") or "")
    layer = hook_layer(hook) if run.sae.layer is None else run.sae.layer
    if lm is not None and facts["d_in"] != lm.hidden_size:
        return Finding("fail", "sae", f"sae.path must fit the model's width {lm.hidden_size}; found d_in {facts['d_in']} in {folder}.")
    if layer is None:
        return Finding("fail", "sae", f"sae.layer must be given, since the SAE's own hook names no block; found {hook!r}.")
    if lm is not None and layer >= lm.num_hidden_layers:
        return Finding("fail", "sae", f"sae.layer must be below the model's {lm.num_hidden_layers} blocks; found {layer}.")
    return Finding("ok", "sae", f"{folder}: {facts['d_sae']} latents on the output of block {layer}")


def _route_folder(folder: Path, run: RunConfig, lm: Any) -> Finding:
    """A RouteSAE's directory, against the method, and the language model where that is known."""
    from unlearn.models.route_sae import read_routing

    check_routed(find("method", run.method.name, "method.name").load(), run)
    layers = read_routing(folder).layers
    facts = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    if lm is not None and facts["d_in"] != lm.hidden_size:
        return Finding("fail", "sae", f"sae.route must fit the model's width {lm.hidden_size}; found d_in {facts['d_in']} in {folder}.")
    if lm is not None and layers[-1] >= lm.num_hidden_layers:
        return Finding(
            "fail", "sae", f"sae.route must read the model's {lm.num_hidden_layers} blocks; found block {layers[-1]} in {folder}."
        )
    return Finding("ok", "sae", f"{folder}: {facts['d_sae']} latents on the output of one of blocks {', '.join(map(str, layers))}")


def _release(release: str, sae_id: str) -> Finding:
    """A published SAE, in the directory that sae_lens ships."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release not in known:
        if "/" in release:
            return Finding("warn", "sae", f"{release} is no release of sae_lens, so a hub id: not looked at")
        return Finding("fail", "sae", f"sae.release must be a release of sae_lens; found {release!r}.{did_you_mean(release, known)}")
    ids = known[release].saes_map
    if sae_id not in ids:
        return Finding(
            "fail", "sae", f"sae.sae_id must be one of the {len(ids)} of {release}; found {sae_id!r}.{did_you_mean(sae_id, ids)}"
        )
    return Finding("ok", "sae", f"{release} {sae_id}, for {known[release].model}")
