"""What is measured beside a run: a model directory, a hub id or a finished run, and what its measurement on a benchmark is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.assembly import Assembly, cache_folder, stage
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.errors import ConfigError, ModelError, RunError
from unlearn.registry import find
from unlearn.restore import restore
from unlearn.tracking.files import read_json
from unlearn.tracking.rundir import RunDirectory, is_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearn.models.sae import FrozenSAE
    from unlearn.types import Assets

KIND = "evaluation"
"""``kind`` in the manifest of a measured benchmark, which tells it from a run."""
MEASURED = ("seed", "data", "model", "sae", "latents", "evaluation")
"""Sections of a configuration that say what is measured, and how."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model before it is loaded: directory or hub id, or the folder of a finished run; ``base`` names the original model."""

    name: str
    run: RunDirectory | None = None
    base: str | None = None

    def identity(self, config: RunConfig) -> dict[str, str]:
        """What tells this model, its original and its SAE from others: files by their contents, hub ids by name and revision."""
        sae = config.sae.route or config.sae.path or (f"{config.sae.release}/{config.sae.sae_id}" if config.sae.release else None)
        found = {"model": contents(self.name, config.model.revision), "base": contents(self.base), "sae": contents(sae)}
        if self.run is not None:
            found["model"] = f"{read_json(self.run.manifest_path).get('fingerprint')} {found['model']}"
        gold = None if config.evaluation.gold == "source" else config.evaluation.gold
        beside = {"tokenizer": config.model.tokenizer, "heldout_sae": config.sae.heldout_path, "gold": gold}
        return {**found, **{key: contents(name) for key, name in beside.items()}}


def contents(name: str | None, revision: str | None = None) -> str:
    """Hash of a folder's weights and JSON files, 16 hex digits; ``name@revision`` of a hub id; empty for None.

    Weights are read in full, unlike for caches of the untouched original: unlearning may change a few numbers in the middle of a file.
    What a run writes about itself beside its weights does not count.
    """
    from unlearn.models.identity import WEIGHTS

    if name is None:
        return ""
    path = Path(name).expanduser()
    if not path.is_dir():
        return f"{name}@{revision or 'main'}"
    suffixes = WEIGHTS if is_run(path) else (*WEIGHTS, ".json", ".model")
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file() and p.suffix in suffixes and p.name != "activations.npz"):
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]


def find_subject(model: str, base: str | None = None) -> Subject:
    """What ``model`` names; nothing is loaded.

    Raises:
        ModelError: no such directory, or one that holds neither a model nor a run.
        RunError: the run is not finished, or is a measurement itself.
        ConfigError: ``base`` is given for a run.
    """
    from unlearn.models.lm import locate

    place = Path(locate(model, "the model"))
    if not place.is_dir() and len(place.parts) > 1 and place.parent.is_dir():
        raise ModelError(f"the model must be a directory or a hub id (owner/name); found no directory at {model}.")
    if base is not None:
        _check_folder(Path(locate(base, "--base")), "--base")
    if not place.is_dir() or (place / "config.json").is_file() or not is_run(place):
        _check_folder(place, "the model")
        return Subject(name=str(place) if place.is_dir() else model, base=base)
    if read_json(place / "manifest.json").get("kind") == KIND:
        measured = read_json(place / "manifest.json").get("subject")
        raise RunError(
            f"the model must be one, or the folder of a run; found a measurement in {place}: give {measured}, which it measured."
        )
    if base is not None:
        raise ConfigError(f"--base must not be given for a run, which knows its original model; found {base}.")
    run = RunDirectory.open(place)
    state = read_json(run.status_path).get("state")
    if state != "finished":
        raise RunError(f"{place} must be a finished run; found one that is {state}.")
    return Subject(name=str(place), run=run)


def _check_folder(path: Path, key: str) -> None:
    if path.is_dir() and not (path / "config.json").is_file():
        what = "an adapter; merge it into its model first" if (path / "adapter_config.json").is_file() else "no config.json and no run"
        raise ModelError(f"{key} must be a folder with a model's config.json, or of a finished run; found {what} in {path}.")


@dataclass(kw_only=True)
class Models:
    """What was loaded: the model in its final form; ``original`` gives the model it was made from, ``assembly`` is that of a run."""

    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sae: FrozenSAE | None = None
    original: Callable[[], PreTrainedModel] | None = None
    assembly: Assembly | None = None
    assets: Assets | None = None


def load_models(subject: Subject, config: RunConfig) -> Models:
    """Load what is measured.

    Raises:
        UnlearnError: it cannot be loaded, or the parts do not fit each other.
    """
    from unlearn.launch import frozen_device, trainer_settings
    from unlearn.models.lm import load_lm
    from unlearn.models.route_sae import load_route_sae
    from unlearn.models.sae import load_sae

    device = frozen_device(trainer_settings(config.trainer))

    def own_sae() -> FrozenSAE | None:
        if config.sae.route is not None:
            return load_route_sae(Path(config.sae.route).expanduser()).to(device)
        return load_sae(config.sae, None).to(device) if config.sae.path or config.sae.release else None

    if subject.run is not None:
        said = load_config(subject.run.config_path, schemas=plugin_schemas())
        if said.model != config.model:
            raise ConfigError("The section model must be left out for a run, which knows its own; found other values in it.")
        assembly = restore(subject.run.path)
        made = find("source", said.data.source).load()(said.data, seed=said.seed, cache=cache_folder(said))
        assets = made.assets(progress=False)
        meter = assembly.suite.meter
        return Models(
            lm=assembly.module.lm,
            tokenizer=assembly.suite.reader.tokenizer,
            sae=meter.sae if meter is not None and said.sae == config.sae else own_sae(),
            original=once(lambda: load_lm(said.model, assets.model if assets else None, device)[0]),
            assembly=assembly,
            assets=assets,
        )
    with stage("models"):
        lm, tokenizer = load_lm(config.model, None, device)
        models = Models(lm=lm, tokenizer=tokenizer, sae=own_sae())
    if subject.base is not None:
        with stage("original model"):
            base, words = load_lm(replace(config.model, path=subject.base, revision=None), None, device)
        check_base(lm, base, subject.base)
        if words.get_vocab() != tokenizer.get_vocab():
            raise ModelError(
                f"--base must be the model that {subject.name} was made from; found other words in the tokenizer of {subject.base}."
            )
        models.original = lambda: base
    return models


def check_base(lm: PreTrainedModel, base: PreTrainedModel, name: str) -> None:
    """Compare the shapes of a model and of the one it is said to be made from.

    Raises:
        ModelError: they differ.
    """
    from unlearn.models.decoder import blocks_of, hidden_size

    pairs = (
        ("blocks", *(len(blocks_of(m)) for m in (lm, base))),
        ("width", *(hidden_size(m) for m in (lm, base))),
        ("embeddings", *(m.get_input_embeddings().num_embeddings for m in (lm, base))),
    )
    for what, here, there in pairs:
        if here != there:
            raise ModelError(f"--base must be the model that was changed ({what}: {here}); found {there} in {name}.")
