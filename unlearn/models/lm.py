"""Loading a language model and its tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlearn.config.schema import ModelConfig
from unlearn.errors import ModelError
from unlearn.models.bits import check_widths, quantised
from unlearn.tracking.rundir import is_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def one_line(error: BaseException) -> str:
    """First line of an error's message, after its type."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def locate(name: str, key: str) -> str:
    """``name`` as it is handed to transformers: an existing directory, or a hub id.

    Raises:
        ModelError: it is neither; the message starts with ``key``.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    hub_id = not path.is_absolute() and not name.startswith((".", "~")) and name.count("/") <= 1
    if path.exists() or not hub_id:
        raise ModelError(f"{key} must be a directory or a hub id (owner/name); found no directory at {name}.")
    return name


def locate_model(name: str, key: str) -> str:
    """``locate``, of what must be a model.

    Raises:
        ModelError: it is neither, or the folder of a run; the message starts with ``key``.
    """
    place = locate(name, key)
    if is_run(Path(place)):
        raise ModelError(f"{key} must be a model; found a run in {name}. Write its model to a folder first: unlearn export {name} FOLDER.")
    return place


def _failed(key: str, place: str, error: Exception) -> ModelError:
    from_hub = not Path(place).is_dir()
    offline = "HF_HUB_OFFLINE is set; " if from_hub and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on") else ""
    return ModelError(f"{key} {place} could not be loaded: {offline}{one_line(error)}")


def _load_model(place: str, config: ModelConfig, device: torch.device | str) -> Any:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {} if config.attention is None else {"attn_implementation": config.attention}
    options |= quantised(config, device)
    try:
        lm, info = AutoModelForCausalLM.from_pretrained(
            place,
            revision=config.revision or "main",
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # hub, file, weight and dependency errors have no common base
        raise _failed("model.path", place, error) from error
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"model.path {place} must hold every weight of a {type(lm).__name__}; found none for {missing[0]} ({len(missing)} missing)."
        )
    return lm


def _load_tokenizer(place: str, config: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    own = config.tokenizer is not None
    key = "model.tokenizer" if own else "the tokenizer of model.path"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision="main" if own else config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # as above
        raise _failed(key, place, error) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{key} must be a fast one, which knows where its tokens stand in the text; found {type(tokenizer).__name__} in {place}."
        )
    if tokenizer.pad_token is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise ModelError(f"{key} must have a padding, end-of-sequence or unknown token; found none in {place}.")
        tokenizer.pad_token = stand_in
    tokenizer.padding_side = "right"
    return tokenizer


def load_lm(
    config: ModelConfig, default: Path | None, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model that the configuration names, else the one at ``default``, with its tokenizer.

    The model is on ``device``, in eval mode, and nothing in it requires a gradient (``select_trainable`` decides). The tokenizer has a
    padding token (its end of sequence where it has none of its own; the attention mask tells them apart) and pads on the right.
    Nothing is fetched when ``HF_HUB_OFFLINE`` is set.

    Args:
        config: the ``model`` section.
        default: directory of the model that the data source brings along.
        device: where the model is put.

    Raises:
        ConfigError: ``model.quantise`` without bitsandbytes.
        ModelError: no model is named, it cannot be found, fetched or read, weights are missing from it, its tokenizer gives no character
            offsets, or the tokenizer has more entries than the model has embeddings.
    """
    if config.path is None and default is None:
        raise ModelError("model.path must name a language model, since the data source brings none; found null.")
    place = str(default) if config.path is None else locate_model(config.path, "model.path")
    if config.path is None and not Path(place).is_dir():
        raise ModelError(f"The data source's language model must be a directory; found none at {place}.")
    tokenizer_place = place if config.tokenizer is None else locate(config.tokenizer, "model.tokenizer")
    tokenizer = _load_tokenizer(tokenizer_place, config)
    lm = _load_model(place, config, device)
    check_widths(lm)
    rows = lm.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(f"The tokenizer must have at most as many entries as the model has embeddings ({rows}); found {len(tokenizer)}.")
    lm.config.pad_token_id = tokenizer.pad_token_id
    if lm.generation_config is not None:
        lm.generation_config.pad_token_id = tokenizer.pad_token_id
    lm.requires_grad_(False)
    return (lm if config.quantise else lm.to(device)).eval(), tokenizer
