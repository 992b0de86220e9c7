"""Pushing a finished folder to the Hugging Face hub, on request only."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from unlearn.config.secrets import hide_secrets
from unlearn.errors import ConfigError, ModelError
from unlearn.models.lm import one_line

TOKEN = "HF_TOKEN"
"""Environment variable with the hub's token; it is read from nowhere else."""


def check_push(hub_id: str) -> str:
    """The token, after a look at everything that would fail after the work.

    Raises:
        ConfigError: the id is no ``owner/name``, there is no token, or the hub must not be asked.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise ConfigError(f"--push must be a hub id (owner/name); found {hub_id!r}.")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ConfigError("--push needs the hub; found HF_HUB_OFFLINE set.")
    token = os.environ.get(TOKEN, "")
    if not token:
        raise ConfigError(f"--push needs a token that may write, in the environment variable {TOKEN}; found none.")
    return token


def push(folder: Path, hub_id: str, token: str, leave_out: Sequence[str], message: str) -> str:
    """Upload ``folder`` to the repository ``hub_id`` and return its address; a repository that is not there is made, private.

    Raises:
        ModelError: the hub refuses or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(hub_id, private=True, exist_ok=True)
        done = api.upload_folder(repo_id=hub_id, folder_path=folder, ignore_patterns=list(leave_out), commit_message=message)
    except Exception as error:  # connection, authorisation and validation errors have no common base
        raise ModelError(f"{hub_id} must be a repository that takes the folder; found: {hide_secrets(one_line(error))}") from error
    return str(done.repo_url if hasattr(done, "repo_url") else done)
