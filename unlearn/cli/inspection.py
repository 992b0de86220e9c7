"""What ``unlearn doctor CONFIG`` asks of a configuration: is it valid, are its rows usable, are its models there and do they fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.assembly import cache_folder, check_routed
from unlearn.cli.arguments import load
from unlearn.cli.doctor import Check, Finding
from unlearn.config.schema import RunConfig
from unlearn.errors import ModelError, UnlearnError, did_you_mean
from unlearn.registry import find
from unlearn.types import STREAMS

if TYPE_CHECKING:
    from unlearn.data.sources.base import Source


class Inspection:
    """The runs that ``words`` describe, empty if they describe none, and the checks of them."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.runs: list[RunConfig] = []
        if words:
            with suppress(UnlearnError):  # reported by ``valid``
                self.runs = load(words)

    def checks(self) -> list[tuple[str, Check]]:
        """(name, check); what several runs share is looked at once."""
        found: list[tuple[str, Check]] = [("config", self.valid)]
        seen: list[tuple[str, Any]] = []
        for run in self.runs:
            parts: list[tuple[str, Any, Check]] = [
                ("trainer", run.trainer, partial(_trainer, run)),
                ("data", (run.data, run.seed), partial(_data, run)),
                ("model", (run.data, run.model), partial(_model, run)),
                ("sae", (run.data, run.model, run.sae), partial(_sae, run)),
            ]
            for what, key, check in parts:
                if (what, key) not in seen:
                    seen.append((what, key))
                    found.append((what, check))
        return found

    def valid(self) -> Iterator[Finding]:
        """Load again, so that what is wrong is reported here."""
        runs = load(self.words)
        names = ", ".join(run.name for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
        yield Finding("ok", "config", f"{len(runs)} run{'s' * (len(runs) > 1)}: {names}")


def _trainer(run: RunConfig) -> Iterator[Finding]:
    import torch

    from unlearn.launch import trainer_settings

    settings = trainer_settings(run.trainer)
    if settings["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        yield Finding(
            "fail", "trainer", f"trainer.accelerator must be one that torch finds; found {settings['accelerator']!r} and no CUDA device."
        )
    else:
        yield Finding("ok", "trainer", ", ".join(f"{key} {value}" for key, value in settings.items()))


def _source(run: RunConfig) -> Source:
    cls: Any = find("source", run.data.source, "data.source").load()
    source: Source = cls(run.data, seed=run.seed, cache=cache_folder(run))
    return source


def _data(run: RunConfig) -> Iterator[Finding]:
    from unlearn.data.checks import check_streams

    data = _source(run).load()
    check_streams(data)
    streams = ", ".join(f"{name} {len(data.streams[name])}" for name in STREAMS)
    yield Finding("ok", "data", f"{run.data.source}: rows of {streams}; measured on {', '.join(data.evaluation)}")
    for name in STREAMS:
        wanted = getattr(run.data.batch, name)
        if wanted > len(data.streams[name]):
            text = f"data.batch.{name} is {wanted}, more than the {len(data.streams[name])} rows of the stream: a step sees rows twice."
            yield Finding("warn", "data", text)


def _model(run: RunConfig) -> Iterator[Finding]:
    if run.model.path is None:
        yield _brought(run, "model", "model.path")
    else:
        lm = _lm(run)
        yield Finding("ok", "model", f"{run.model.path}: {lm.model_type}, {lm.num_hidden_layers} blocks of width {lm.hidden_size}")


def _sae(run: RunConfig) -> Iterator[Finding]:
    if run.sae.release is not None:
        yield _release(run.sae.release, str(run.sae.sae_id))
    elif run.sae.path is not None or run.sae.route is not None:
        lm = None
        if run.model.path is not None:
            with suppress(ModelError):  # reported by ``_model``
                lm = _lm(run)
        look = _sae_folder if run.sae.route is None else _route_folder
        yield look(Path(str(run.sae.path or run.sae.route)).expanduser(), run, lm)
    else:
        yield _brought(run, "sae", "sae.path or sae.release")


def _brought(run: RunConfig, what: str, key: str) -> Finding:
    from unlearn.data.sources.base import Source

    if type(_source(run)).assets is Source.assets:
        return Finding("fail", what, f"{key} must be given, since the source {run.data.source} brings no models; found none.")
    return Finding("ok", what, f"comes with the source {run.data.source}, which builds it when the cache ({cache_folder(run)}) has none")


def _lm(run: RunConfig) -> Any:
    """The model's own configuration (a small file, fetched if need be), once its tokenizer could be loaded too.

    Raises:
        ModelError: one of them cannot be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer

    from unlearn.models.lm import locate, one_line

    c = run.model
    place = locate(str(c.path), "model.path")
    tokenizer = place if c.tokenizer is None else locate(c.tokenizer, "model.tokenizer")
    try:
        config = AutoConfig.from_pretrained(place, revision=c.revision or "main", trust_remote_code=c.trust_remote_code)
        AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=c.trust_remote_code)
    except Exception as error:  # hub, network and file errors have no common base
        raise ModelError(f"model.path {place} (or its tokenizer) could not be loaded: {one_line(error)}") from error
    return config.get_text_config()


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
