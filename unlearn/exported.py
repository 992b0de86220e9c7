"""An exported folder brought back: its weights, and by what it says of itself the original model, the SAE and the rows it was made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.assembly import cache_folder, stage
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import ModelConfig, RunConfig
from unlearn.errors import ModelError, UnlearnError
from unlearn.registry import find
from unlearn.subject import Models, Subject, check_base
from unlearn.tracking.exported import LOCAL_FILE, PROVENANCE
from unlearn.tracking.files import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unlearn.models.sae import FrozenSAE
    from unlearn.types import Assets

HASHED = "the names are hashed in this folder, and with them the data that it was made with"


@dataclass(kw_only=True)
class FromExport:
    """What was found. ``rows_trouble`` says why there are no rows and no SAE, ``base_trouble`` why there is no original model; None where
    there is."""

    config: RunConfig
    models: Models
    subject: Subject
    method: str
    probe_auc: float | None
    rows_trouble: str | None
    base_trouble: str | None


def load_exported(folder: Path, base: str | None = None) -> FromExport:
    """Load an exported model and whatever stands beside it.

    Args:
        folder: what ``unlearn export`` wrote.
        base: folder or hub id of the original model; None takes the one that the folder names.

    Raises:
        ModelError: the weights cannot be loaded, or ``base`` is another model.
    """
    from unlearn.launch import frozen_device, trainer_settings

    provenance = read_json(folder / PROVENANCE)
    told = read_json(folder / LOCAL_FILE).get("config")
    config, trouble = _config(provenance, told)
    device = frozen_device(trainer_settings(config.trainer))
    assets: Assets | None = None
    if trouble is None:
        assets, trouble = _assets(config)
    with stage("models"):
        original, base_trouble = _original(provenance, config, assets, base, device, local=told is not None)
        models = _weights(folder, provenance, config, original, device)
        if original is not None:
            check_base(models.lm, original(), base or provenance["base"]["name"])
        models.original = original
    if trouble is None:
        try:
            models.sae, config = _sae(config, assets, device)
        except UnlearnError as error:
            trouble = str(error)
    where = base or config.model.path or (str(assets.model) if assets else None)
    subject = Subject(name=str(folder), base=where if original is not None else None)
    return FromExport(
        config=config, models=models, subject=subject, method=str(provenance["method"]["name"]),
        probe_auc=provenance["results"].get("latent/probe_auc"), rows_trouble=trouble, base_trouble=base_trouble,
    )  # fmt: skip


def _config(provenance: Mapping[str, Any], told: Mapping[str, Any] | None) -> tuple[RunConfig, str | None]:
    """The run's configuration, on whatever devices are here; where it cannot be read, models and question format, and why."""
    given = dict(told or provenance["config"])
    model, data = given["model"], given["data"]
    trouble: str | None = HASHED if provenance["data"]["hashed"] else None
    if trouble is None:
        try:
            return load_config({**given, "name": "chat", "trainer": {}}, schemas=plugin_schemas()), None
        except UnlearnError as error:
            trouble = str(error)
    form = {key: data[key] for key in ("question_format", "answer_separator", "answer_end", "append_eos") if key in data}
    longest = {"max_new_tokens": given["evaluation"]["max_new_tokens"]}
    rows = {"source": "jsonl", "path": "none", **form}
    small = {"name": "chat", "model": model, "data": rows, "method": {"name": "none"}, "evaluation": longest}
    return load_config(small, schemas=plugin_schemas()), trouble


def _assets(config: RunConfig) -> tuple[Assets | None, str | None]:
    """What the source brings along, and what is wrong with it."""
    try:
        with stage("data source"):
            source = find("source", config.data.source).load()(config.data, seed=config.seed, cache=cache_folder(config))
            return source.assets(progress=False), None
    except UnlearnError as error:
        return None, str(error)


Loader = Callable[[], "PreTrainedModel"]


def _original(
    provenance: Mapping[str, Any], config: RunConfig, assets: Assets | None, base: str | None, device: torch.device, *, local: bool
) -> tuple[Loader | None, str | None]:
    """What loads the original model, once; None and why where it cannot be found.

    Raises:
        ModelError: ``base`` is named and cannot be loaded.
    """
    from unlearn.models.lm import load_lm

    named = config.model if base is None else replace(config.model, path=base, revision=None, tokenizer=None)
    known = base is not None or local or provenance["base"]["hub"] or (named.path is None and assets is not None)
    if not known:
        return None, "this folder does not say where its original model is: name it by --base"
    load = once(lambda: load_lm(named, assets.model if assets else None, device)[0])
    try:
        load()
    except ModelError as error:
        if base is not None:
            raise
        return None, f"the original model is not there ({error}): name it by --base"
    return load, None


def _weights(folder: Path, provenance: Mapping[str, Any], config: RunConfig, original: Loader | None, device: torch.device) -> Models:
    """The exported model with its tokenizer."""
    from unlearn.models.lm import load_lm

    if provenance["form"] != "adapter":
        own: ModelConfig = replace(config.model, path=str(folder), revision=None, tokenizer=None, dtype=provenance["dtype"])
        lm, tokenizer = load_lm(own, None, device)
        return Models(lm=lm, tokenizer=tokenizer)
    if original is None:
        raise ModelError(f"{folder} holds an adapter, which needs its original model; found none: name it by --base.")
    import copy

    from peft import PeftModel
    from transformers import AutoTokenizer

    adapted: Any = PeftModel.from_pretrained(copy.deepcopy(original()), str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.pad_token or tokenizer.eos_token
    return Models(lm=adapted.to(device), tokenizer=tokenizer)


def _sae(config: RunConfig, assets: Assets | None, device: torch.device) -> tuple[FrozenSAE, RunConfig]:
    """The run's SAE, and the configuration with its place in it."""
    from unlearn.models.route_sae import load_route_sae
    from unlearn.models.sae import load_sae

    if config.sae.route is not None:
        return load_route_sae(Path(config.sae.route).expanduser()).to(device), config
    own = config.sae
    if own.path is None and own.release is None and assets is not None:
        own = replace(own, path=str(assets.sae))
    return load_sae(own, None).to(device), replace(config, sae=own)
