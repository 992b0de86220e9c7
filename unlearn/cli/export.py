"""``unlearn export``: what happens around ``unlearn.export.export``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from unlearn.cli.console import console, note
from unlearn.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from unlearn.export import Exported

DTYPES = ("float32", "bfloat16", "float16")


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.", show_default=False)],
    adapter: Annotated[bool, typer.Option("--adapter", help="Of a LoRA run, the adapter alone.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="Of a LoRA run, all weights with the adapters added in (the default).")] = False,
    dtype: Annotated[str | None, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16; as trained if left out.")] = None,
    hash_names: Annotated[bool, typer.Option("--hash-names", help="Tell the forgotten names as salted hashes only.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Also log the model to the run's MLflow store.")] = False,
    push: Annotated[str | None, typer.Option(metavar="HUB_ID", help="Also upload it to the hub (token: HF_TOKEN).")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --push: do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a run's model to a folder that needs nothing of this package: weights, tokenizer, model card, provenance."""
    from unlearn.export import export, exportable
    from unlearn.models.hub import check_push

    form = _form(adapter, merged)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype must be one of {', '.join(DTYPES)}; found {dtype!r}.{did_you_mean(dtype, DTYPES)}")
    if mlflow and form == "adapter":
        raise ConfigError("--mlflow logs whole weights; found --adapter beside it. Leave one of them out.")
    token = None if push is None else check_push(push)
    if push is not None and not yes and not sys.stdin.isatty():
        raise ConfigError("--push asks before it uploads, and nobody is there to answer; add --yes if you mean it.")
    log = _mlflow_logger(run) if mlflow else None
    exportable(str(run))
    done = export(str(run), folder, form=form, dtype=dtype, hash_names=hash_names, force=force)
    _conclude(done, run, hash_names)
    if log is not None:
        note(f"in MLflow: {log(done)}")
    if push is not None and token is not None:
        _push(done, push, token, yes)


def _form(adapter: bool, merged: bool) -> str | None:
    if adapter and merged:
        raise ConfigError("--adapter and --merged exclude each other; found both.")
    return "adapter" if adapter else "merged" if merged else None


def _size(path: Path) -> str:
    size = float(sum(p.stat().st_size for p in path.rglob("*") if p.is_file()))
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _conclude(done: Exported, run: Path, hashed: bool) -> None:
    p, out = done.provenance, console()
    what = {"whole": "all weights", "adapter": "the adapter alone", "merged": "all weights, adapters added in"}[done.form]
    out.print(Text.assemble((str(done.path), "bold"), f": {what}, {p['dtype']}, {_size(done.path)}"), soft_wrap=True)
    word, reason = p["verdict"]["word"], p["verdict"]["reason"]
    out.print(Text.assemble(("verdict  ", "dim"), (word or "none", "bold"), f": {reason}"))
    if not any(key.startswith("attack/") for key in p["results"]):
        note(f"no attack was made on it; unlearn attack {run}, then export again, puts the outcome into the card")
    note(f"read {done.path / 'README.md'} before you hand it on; unlearn chat {done.path} talks to it")
    if hashed:
        note(f"the salt of the hashes is in {run / 'names.salt'}: keep it, and keep it to yourself")


def _mlflow_logger(run: Path) -> Callable[[Exported], str]:
    """What logs the exported model to the run's store.

    Raises:
        ConfigError: the run is in no store.
    """
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas
    from unlearn.tracking.files import read_json
    from unlearn.tracking.mlflow import quieten, store_uri
    from unlearn.tracking.mlflow_model import log_model

    run_id = read_json(run / "manifest.json").get("mlflow_run_id")
    if not run_id:
        raise ConfigError(f"--mlflow needs a run that is in an MLflow store; found none of {run}.")
    config = load_config(run / "config.yaml", schemas=plugin_schemas())
    quieten()

    def log(done: Exported) -> str:
        facts = {"fingerprint": done.provenance["run"]["fingerprint"], "method": config.method.name, "dtype": done.provenance["dtype"]}
        return log_model(done.path, store_uri(config.tracking), str(run_id), config.evaluation.max_new_tokens, facts)

    return log


def _push(done: Exported, hub_id: str, token: str, yes: bool) -> None:
    from unlearn.models.hub import push
    from unlearn.tracking.exported import LOCAL_FILE

    if done.form == "adapter" and not done.provenance["base"]["hub"]:
        raise ConfigError("--push of an adapter needs an original model with a hub id; found a local one. Push merged weights instead.")
    if not yes and not typer.confirm(f"Upload {done.path} ({_size(done.path)}) to {hub_id}? A new repository is private.", default=False):
        note("not uploaded")
        return
    word = done.provenance["verdict"]["word"] or "not attacked"
    url = push(done.path, hub_id, token, [LOCAL_FILE], f"unlearn export: {done.provenance['method']['name']}, {word}")
    note(f"uploaded to {url}")
