"""Settings and provenance: what all runs share, what differs, and which run every number is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.config.fingerprint import flatten
from unlearn.report.names import DASH, labels_of, plain
from unlearn.report.pool import Setting
from unlearn.tracking.reader import RunRecord
from unlearn.tracking.store import public_uri

LOCAL: frozenset[str] = frozenset({"name", "out", "cache", "tracking"})
"""Sections of a configuration that say where things lie on one machine; a report leaves them out."""
FIRST = ("seed", "status", "fingerprint", "commit", "started")
"""Facts that stand first in the table of runs, whether they differ or not."""


@dataclass(frozen=True)
class Facts:
    """``shared`` holds (key, value) pairs that are equal in all; ``differing`` a key and one value for each."""

    shared: list[tuple[str, str]]
    differing: list[tuple[str, list[str]]]

    def of(self, index: int) -> list[tuple[str, str]]:
        """The keys that differ and that the one at ``index`` has, with its values."""
        return [(key, values[index]) for key, values in self.differing if values[index] != DASH]


@dataclass(frozen=True)
class Runs:
    """Every run behind a report: ``columns`` name the facts, ``rows`` hold (index of its setting, its name, one text for each column)."""

    columns: list[str]
    rows: list[tuple[int, str, list[str]]]
    shared: list[tuple[str, str]]


def settings(records: Sequence[RunRecord]) -> Facts:
    """The configurations, without what is local to a machine; seeds are left to the table of runs where some have several."""
    skipped = LOCAL | {"seed"} if any(isinstance(r, Setting) and len(r.runs) > 1 for r in records) else LOCAL
    return _split([flatten({key: value for key, value in record.config.items() if key not in skipped}) for record in records])


def runs(pooled: Sequence[Setting]) -> Runs:
    """Fingerprints, seeds, versions, commit, hardware and command of every run."""
    every = [(index, run) for index, setting in enumerate(pooled) for run in setting.runs]
    facts = [_facts(run) for _, run in every]
    split = _split(facts)
    differing = dict(split.differing)
    first = [key for key in FIRST if any(key in fact for fact in facts)]
    columns = [*first, *(key for key in differing if key not in first and key != "name")]
    texts = {key: [_text(fact[key]) if key in fact else DASH for fact in facts] for key in columns}
    labels = labels_of([run for _, run in every])
    rows = [(index, label, [texts[key][row] for key in columns]) for row, ((index, _), label) in enumerate(zip(every, labels, strict=True))]
    return Runs(columns, rows, [(key, value) for key, value in split.shared if key not in (*first, "name")])


def _facts(record: RunRecord) -> dict[str, Any]:
    manifest = record.manifest
    facts: dict[str, Any] = {"name": record.name, "seed": record.config.get("seed"), "status": record.status.get("state")}
    facts["reason"] = record.status.get("reason") or None
    for key in ("fingerprint", "data_fingerprint", "model_fingerprint", "started", "command"):
        facts[key.replace("_", " ")] = manifest.get(key)
    facts["commit"] = _commit(manifest.get("git"))
    shown = {"fingerprint", "data_fingerprint", "model_fingerprint", "started", "command", "git", "name", "seeds"}
    facts |= flatten({str(key): value for key, value in manifest.items() if key not in shown})
    return {plain(key): value for key, value in facts.items() if value is not None}


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
