"""An exported model in the MLflow store, as a model of the run it came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from unlearn.config.secrets import hide_secrets
from unlearn.errors import RunError
from unlearn.tracking.store import public_uri

REQUIREMENTS: tuple[str, ...] = ("torch", "transformers", "accelerate")
"""What is needed to load the model; nothing of this package."""
NAME = "model"


def log_model(folder: Path, uri: str, run_id: str, longest: int, metadata: Mapping[str, str]) -> str:
    """Log the model in ``folder`` to the run ``run_id`` with the transformers flavour and a signature; return its ``models:/`` address.

    Text in, continued text out; parameters ``max_new_tokens`` and ``do_sample``.

    Args:
        folder: whole weights, configuration and tokenizer.
        uri: the tracking store.
        run_id: run that made the model; its status is as before afterwards.
        longest: default of ``max_new_tokens``.
        metadata: kept with the model.

    Raises:
        RunError: the store does not take it.
    """
    import mlflow
    from huggingface_hub import ModelCard
    from mlflow.models import infer_signature
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)  # it misses a licence and a card on the hub
    signature = infer_signature("a question", "a question and its answer", {"max_new_tokens": longest, "do_sample": False})
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        with mlflow.start_run(run_id=run_id):
            parts = {cls: auto.from_pretrained(folder) for cls, auto in (("model", AutoModelForCausalLM), ("tokenizer", AutoTokenizer))}
            logged = mlflow.transformers.log_model(
                transformers_model=parts,
                model_card=ModelCard.load(folder / "README.md"),
                task="text-generation",
                name=NAME,
                signature=signature,
                pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
                metadata=dict(metadata),
            )
    except Exception as error:  # whatever a store may raise
        reason = hide_secrets((str(error).splitlines() or [""])[0].replace(uri, public_uri(uri)))
        raise RunError(f"{public_uri(uri)} must be a store that takes the model; found: {reason or type(error).__name__}.") from error
    finally:
        mlflow.set_tracking_uri(before)
    return str(logged.model_uri)
