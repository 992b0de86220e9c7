"""Settings and provenance: what all runs share, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.config.fingerprint import flatten
from unlearn.report.names import DASH, plain
from unlearn.tracking.reader import RunRecord
from unlearn.tracking.store import public_uri

LOCAL: frozenset[str] = frozenset({"name", "out", "cache", "tracking"})
"""Sections of a configuration that say where things lie on one machine; a report leaves them out."""


@dataclass(frozen=True)
class Facts:
    """``shared`` holds (key, value) pairs that are equal in all runs; ``differing`` a key and one value for each run."""

    shared: list[tuple[str, str]]
    differing: list[tuple[str, list[str]]]


def settings(records: Sequence[RunRecord]) -> Facts:
    """The configurations, without what is local to a machine."""
    kept = [{key: value for key, value in record.config.items() if key not in LOCAL} for record in records]
    return _split([flatten(config) for config in kept])


def provenance(records: Sequence[RunRecord]) -> Facts:
    """Fingerprints, seeds, versions, commit, hardware and command."""
    return _split([_facts(record) for record in records])


def _facts(record: RunRecord) -> dict[str, Any]:
    manifest = record.manifest
    facts: dict[str, Any] = {"name": record.name, "status": record.status.get("state"), "reason": record.status.get("reason") or None}
    for key in ("fingerprint", "data_fingerprint", "model_fingerprint", "started", "command"):
        facts[key.replace("_", " ")] = manifest.get(key)
    facts["commit"] = _commit(manifest.get("git"))
    shown = {"fingerprint", "data_fingerprint", "model_fingerprint", "started", "command", "git", "name"}
    facts |= flatten({str(key): value for key, value in manifest.items() if key not in shown})
    return {key: value for key, value in facts.items() if value is not None}


def _commit(git: object) -> str | None:
    if not isinstance(git, Mapping) or not git.get("commit"):
        return None
    return f"{str(git['commit'])[:12]}{', with changes' if git.get('dirty') else ''}"


def _split(flat: Sequence[Mapping[str, Any]]) -> Facts:
    facts = Facts([], [])
    for key in dict.fromkeys(key for one in flat for key in one):
        values = [_text(one[key]) if key in one else DASH for one in flat]
        if len(set(values)) == 1:
            facts.shared.append((plain(key), values[0]))
        else:
            facts.differing.append((plain(key), values))
    return facts


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return plain(public_uri(value) if isinstance(value, str) and "://" in value else value)
