"""What an exported folder says about itself: provenance.json, the model card, and local.json, which stays on this machine."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.fingerprint import NO_EFFECT, plain
from unlearn.config.secrets import hide_secrets
from unlearn.errors import RunError
from unlearn.functional.conceal import Concealer
from unlearn.functional.judgement import judge
from unlearn.registry import entries
from unlearn.report.card import BROUGHT, model_card
from unlearn.tracking.files import read_json, write_atomic
from unlearn.tracking.manifest import command, git_state, versions
from unlearn.tracking.reader import read_run

if TYPE_CHECKING:
    from unlearn.config.schema import RunConfig
    from unlearn.tracking.rundir import RunDirectory
    from unlearn.types import EntityData

TOLD = (
    *("fingerprint", "started", "command", "versions", "git", "hardware"),
    *("seeds", "trained_parameters", "parameters", "hook", "precision"),
)
"""Keys of a run's manifest that go along."""
FORMAT = ("question_format", "answer_separator", "answer_end", "append_eos")
"""Of the data settings, those that are told with hashed names: how a question is put."""
SALT = "names.salt"
"""File in a run's folder with the key of its hashed names."""

_PATH = re.compile(r"(?<![\w.:/])(?:~|/)[^\s'\"=,]*/(?=[^\s'\"/=,]+)")


def forgotten_names(data: EntityData) -> dict[str, tuple[str, ...]]:
    """Every target with the forms under which rows name it, in the order of the rows."""
    found: dict[str, dict[str, None]] = {}
    sets = [data.streams["forget"], *(rows for name, rows in data.evaluation.items() if name.startswith("forget"))]
    for row in (row for rows in sets for row in rows if row.entity):
        found.setdefault(row.entity, {}).update(dict.fromkeys(row.mentions))
    return {name: tuple(forms) for name, forms in found.items()}


def concealer_of(run: RunDirectory, names: Mapping[str, Sequence[str]]) -> Concealer:
    """What hides ``names``, with the salt that the run's folder keeps (made once)."""
    path = run.path / SALT
    if not path.is_file():
        write_atomic(path, secrets.token_hex(16) + "\n")
    return Concealer(names, bytes.fromhex(path.read_text(encoding="ascii").strip()))


def check_hidden(folder: Path, concealer: Concealer) -> None:
    """Look for the names in every text that was written.

    Raises:
        RunError: one is there (in a file that transformers wrote, such as the path of an adapter's original model).
    """
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".safetensors"):
        vocabulary = path.name.startswith(("tokenizer", "vocab", "merges"))
        found = concealer.holds_name if vocabulary else concealer.holds
        if found(path.read_text(encoding="utf-8", errors="replace")):
            raise RunError(f"{path.name} must not hold a forgotten name with --hash-names; found one.")


def short_paths(text: str) -> str:
    """``text`` with absolute paths cut down to their last part.

    >>> short_paths("unlearn run /home/me/a.yaml data.root=/data/tofu/ model.path=google/gemma-2-2b")
    'unlearn run a.yaml data.root=tofu/ model.path=google/gemma-2-2b'
    """
    return _PATH.sub("", text)


def _public(value: Any) -> Any:
    """A nested value without passwords and without this machine's folders."""
    if isinstance(value, Mapping):
        return {str(key): _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return hide_secrets(short_paths(value)) if isinstance(value, str) else value


def changed(config: RunConfig) -> dict[str, Any]:
    """What the configuration says beyond defaults, without what has no effect on the result."""
    own = {key: value for key, value in _beyond(config).items() if key not in NO_EFFECT}
    own["trainer"] = {key: value for key, value in own.get("trainer", {}).items() if f"trainer.{key}" not in NO_EFFECT}
    named = {"data": {"source": config.data.source}, "method": {"name": config.method.name}}
    own = {key: value for key, value in own.items() if value != {}}
    return {"name": config.name, **own, **{key: {**value, **own.get(key, {})} for key, value in named.items()}}


def _beyond(config: Any) -> dict[str, Any]:
    """Fields of a dataclass that do not have their default, as plain values."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value != default:
            found[field.name] = _beyond(value) if dataclasses.is_dataclass(value) else plain(value)
    return found


def _base(config: RunConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The original model: name (a hub id, the name of a folder, or of the source that brings it along) and fingerprint."""
    path = config.model.path
    hub = path is not None and not Path(path).expanduser().is_dir()
    name = f"{BROUGHT}{config.data.source}" if path is None else path if hub else Path(path).name
    return {"name": name, "hub": hub, "revision": config.model.revision, "fingerprint": facts["model_fingerprint"]}


def card_and_provenance(
    run: RunDirectory,
    config: RunConfig,
    facts: Mapping[str, Any],
    names: Sequence[str],
    written: Mapping[str, Any],
    concealer: Concealer | None,
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The model card, the content of provenance.json, and that of local.json.

    Args:
        run: the run.
        config: its configuration.
        facts: what its assembly knows (``Assembly.facts``).
        names: what was forgotten.
        written: ``form``, ``dtype`` and ``weights`` of the folder, and ``prompt``, how a question is put.
        concealer: hides the names; with it the section ``data``, the command and whatever else would tell them are left out, and the
            fingerprints of data and configuration are hashed with the same salt.
    """
    record, manifest = read_run(run.path), read_json(run.manifest_path)
    method = entries("method")[config.method.name]
    numbers = {key: float(v) for key, v in record.results.items() if isinstance(v, int | float)}
    tree = plain(config)
    provenance: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": record.name,
        **written,
        "base": _base(config, facts),
        "method": {key: method.facts.get(key, "") for key in ("name", "family", "summary", "paper")},
        "data": {
            "source": config.data.source,
            "fingerprint": facts["data_fingerprint"],
            "forgotten": list(names),
            "hashed": concealer is not None,
            "notes": dict(facts.get("notes", {})),
        },
        "sae": {"fingerprint": facts["sae_fingerprint"], "layer": facts["hook"]["layer"]},
        "run": {key: manifest[key] for key in TOLD if key in manifest},
        "export": {"command": command(), "versions": versions(), "git": git_state()},
        "settings": changed(config),
        "config": {key: value for key, value in tree.items() if key not in NO_EFFECT},
        "results": dict(record.results),
        "verdict": judge(numbers)._asdict(),
    }
    provenance = _public(provenance)
    if concealer is not None:
        provenance = _hidden(provenance, concealer, list(names))
    card = model_card(provenance, record)
    local = {"run": str(run.path.resolve()), "config": {**tree, "tracking": {**tree["tracking"], "uri": None}}}
    return (card if concealer is None else concealer.text(card)), provenance, local


def _hidden(provenance: dict[str, Any], concealer: Concealer, names: Sequence[str]) -> dict[str, Any]:
    """``provenance`` without the names and without what names can be found with."""
    data, run = dict(provenance["data"]), dict(provenance["run"])
    data |= {"forgotten": [concealer.hashes[name] for name in names], "notes": {}, "fingerprint": concealer.key(data["fingerprint"])}
    run |= {"fingerprint": concealer.key(str(run.get("fingerprint", ""))), "command": ""}
    source = {"source": data["source"]}
    form = {key: value for key, value in provenance["config"]["data"].items() if key in FORMAT}
    kept = {
        **provenance,
        "run": run,
        "export": {**provenance["export"], "command": ""},
        "settings": {**provenance["settings"], "data": source},
        "config": {**provenance["config"], "data": {**source, **form}},
    }
    return {**concealer.value(kept), "data": {**concealer.value({**data, "forgotten": []}), "forgotten": data["forgotten"]}}
