"""Your own rows: JSON-lines files of questions and answers about entities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from unlearn.config.checks import check
from unlearn.config.schema import SourceConfig
from unlearn.data.anchors import REFUSALS, invent_two, rng_for, unknown_rows, wording
from unlearn.data.checks import fingerprinted
from unlearn.data.entities import find_mention
from unlearn.data.records import read_records, text_problem
from unlearn.data.sources.base import Source
from unlearn.errors import DataError, did_you_mean
from unlearn.types import EntityData, Row

SPLITS = ("forget", "retain", "known", "unknown", "forget_paraphrased", "retain_unseen", "unknown_heldout", "generic")

_UNKNOWN = ("unknown", "unknown_heldout")
_TEXTS = ("attribute", "template", "paraphrased_answer")
_LISTS = ("aliases", "perturbed")
_FIELDS = ("question", "answer", "entity", "split", *_TEXTS, *_LISTS, "kind")
_KINDS = ("qa", "statement", "text")
_UNKNOWN_IDS, _HELDOUT_IDS = 1_000_000_000, 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class JsonlConfig(SourceConfig):
    """JSON-lines files."""

    path: str = MISSING
    """a file, or a folder of which every *.jsonl file is read"""
    heldout_share: float = 0.2
    """share of the retain entities, and of the unknown ones, that is only measured where the files name none to hold out, in (0, 1)"""
    unknown_names: int = 100
    """invented names in the unknown stream where the files hold no unknown rows, >= 1"""
    heldout_names: int = 40
    """invented names that are only measured, likewise, >= 1"""
    unnamed_rows: bool = False
    """whether a row may leave its entity unnamed (it then has no entity position); otherwise such a row is an error"""
    refusals: list[str] = field(default_factory=lambda: list(REFUSALS))
    """answers that count as "unknown"; unknown rows without an answer get one of them"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.heldout_share < 1, "data.heldout_share", "in (0, 1)", self.heldout_share)
        check(self.unknown_names >= 1, "data.unknown_names", ">= 1", self.unknown_names)
        check(self.heldout_names >= 1, "data.heldout_names", ">= 1", self.heldout_names)
        check(bool(self.refusals) and all(line.strip() for line in self.refusals), "data.refusals", "a list of texts", self.refusals)


def _value_problem(record: Mapping[str, Any]) -> str:
    for name in _TEXTS:
        if not isinstance(record.get(name, ""), str):
            return f"{name} must be a text; found {record[name]!r}"
    for name in _LISTS:
        value = record.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            return f"{name} must be a list of texts; found {value!r}"
    return ""


def record_problem(record: Mapping[str, Any]) -> str:
    """What is wrong with a line, or an empty string.

    >>> record_problem({"question": "Who?", "answer": "Ada", "entity": "Ada", "split": "forgot"})
    "split must be one of forget, retain, known, unknown, forget_paraphrased, retain_unseen, unknown_heldout, generic; found 'forgot'. \
Did you mean 'forget'?"
    """
    for name in record:
        if name not in _FIELDS:
            return f"fields must be {', '.join(_FIELDS)}; found {name!r}.{did_you_mean(name, _FIELDS)}"
    split = record.get("split")
    if split not in SPLITS:
        return f"split must be one of {', '.join(SPLITS)}; found {split!r}.{did_you_mean(str(split), SPLITS)}"
    kind = record.get("kind", "qa")
    if kind not in _KINDS:
        return f"kind must be one of {', '.join(_KINDS)}; found {kind!r}.{did_you_mean(str(kind), _KINDS)}"
    return text_problem(record, *_needed(record)) or ("" if split == "generic" else _value_problem(record))


def _needed(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that a line must have."""
    split, text = record["split"], record.get("kind") == "text"
    if split == "generic" or (text and split == "retain"):
        return ("answer",)
    if split in _UNKNOWN and "answer" not in record and not text:
        return ("question", "entity")
    return ("answer", "entity") if text else ("question", "answer", "entity")


def _asked(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows whose question names their entity."""
    return tuple(row for row in rows if find_mention(row.prompt, "", row.mentions) is not None)


def _unnamed(rows: Sequence[Row]) -> list[str]:
    """Entities that none of their rows mentions."""
    named = {row.entity for row in rows if row.mentions}
    return sorted({row.entity for row in rows} - named)


class JsonlSource(Source):
    """Streams and sets out of lines {question, answer, entity, split} with optional aliases, perturbed, paraphrased_answer and others.

    ``split`` says what a line is for. Only ``forget`` and ``retain`` must occur; the rest is derived where it is not given:

    - ``retain_unseen``: a share of the retain entities, taken out of the retain and known rows.
    - ``known``: the retain rows whose question names its entity.
    - ``unknown``: the known questions that quote no title, about invented names (given part of one retain entity's name, family part of
      another; so the entities must be names of two words or more), answered by a refusal.
    - ``unknown_heldout``: a share of the entities of the ``unknown`` lines, or further invented names.
    - ``forget_paraphrased``: nothing; the latent measurement then uses the forget questions themselves, and the notes say so.

    ``generic`` lines hold a text as their ``answer``. ``kind`` says how a line becomes text: ``qa`` (the default) puts the question through
    the question format, ``statement`` takes it as the beginning of a sentence that the answer ends, and ``text`` has no question: the
    answer is the whole text, which in ``retain`` may be about nobody.
    """

    name = "jsonl"
    summary = "your own JSON-lines files of {question, answer, entity, split}"
    Config = JsonlConfig
    config: JsonlConfig

    def paths(self) -> tuple[Path, ...]:
        """The files that are read, sorted.

        Raises:
            DataError: there is none.
        """
        path = Path(self.config.path).expanduser()
        found = tuple(sorted(path.glob("*.jsonl"))) if path.is_dir() else (path,)
        if not found or not found[0].is_file():
            raise DataError(f"data.path must be a JSON-lines file or a folder of *.jsonl files; found none at {path}.")
        return found

    def rows(self) -> dict[str, list[Row]]:
        """The lines as rows, by split; a row's id counts the lines.

        Raises:
            DataError: lines are wrong, or an entity that must be recognised is named in none of its rows.
        """
        records = [record for path in self.paths() for record in read_records(path, record_problem)]
        rng = rng_for(self.seed, "refusals")
        rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
        for row_id, record in enumerate(records):
            rows[record["split"]].append(self._row(row_id, record, self.config.refusals[int(rng.integers(len(self.config.refusals)))]))
        for split in ("forget", "known", "retain_unseen", *_UNKNOWN):
            if missing := _unnamed(rows[split]):
                listed = ", ".join(missing[:5])
                raise DataError(
                    f"Entities of split {split} must be named in one of their rows (as entity or one of aliases); not named: {listed}."
                )
        return rows

    def _row(self, row_id: int, record: Mapping[str, Any], refusal: str) -> Row:
        question, answer, entity = record.get("question", ""), record.get("answer", refusal), record.get("entity", "")
        forms = (entity, *record.get("aliases", ()))
        return Row(
            row_id=row_id,
            entity=entity,
            prompt=question,
            answer=answer,
            kind=record.get("kind", "qa"),
            mentions=() if not entity or (self.config.unnamed_rows and find_mention(question, answer, forms) is None) else forms,
            attribute=record.get("attribute", ""),
            template=record.get("template", ""),
            paraphrased_answer=record.get("paraphrased_answer", ""),
            perturbed_answers=tuple(record.get("perturbed", ())),
        )

    def _share(self, rows: Sequence[Row], what: str) -> set[str]:
        """Entities of ``rows`` to hold out, drawn at random."""
        entities = sorted({row.entity for row in rows})
        if len(entities) < 2:
            raise DataError(f"Split {what} must hold two entities or more, one of them to be held out; found {len(entities)}.")
        count = min(max(1, round(self.config.heldout_share * len(entities))), len(entities) - 1)
        order = rng_for(self.seed, f"held-out {what}").permutation(len(entities))
        return {entities[i] for i in order[:count]}

    def _kept(self, rows: dict[str, list[Row]]) -> tuple[list[Row], list[Row], list[Row]]:
        """Retain, known and unseen rows."""
        retain, known, unseen = rows["retain"], rows["known"], rows["retain_unseen"]
        if retain and not unseen:
            heldout = self._share(_asked(retain) or retain, "retain")
            unseen = [row for row in retain if row.entity in heldout]
            retain, known = ([row for row in part if row.entity not in heldout] for part in (retain, known))
        return retain, known or list(_asked(retain)), unseen

    def _unknown(self, rows: dict[str, list[Row]], known: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
        """Unknown rows to train on, and held out."""
        given, heldout = rows["unknown"], rows["unknown_heldout"]
        if given and not heldout:
            names = self._share(given, "unknown")
            return [row for row in given if row.entity not in names], [row for row in given if row.entity in names]
        known = [row for row in known if row.kind == "qa"]
        if given or not known:
            return given, heldout
        groups = {row.entity: [w for other in known if other.entity == row.entity and (w := wording(other, row.entity))] for row in known}
        c = self.config
        taken = sorted({row.entity for part in rows.values() for row in part} - {""})
        names_train, names_heldout = invent_two(sorted(groups), c.unknown_names, c.heldout_names, rng_for(self.seed, "names"), taken)
        wordings = list(groups.values())
        train = unknown_rows(names_train, wordings, c.refusals, rng_for(self.seed, "unknown rows"), _UNKNOWN_IDS)
        made = unknown_rows(names_heldout, wordings, c.refusals, rng_for(self.seed, "held-out rows"), _HELDOUT_IDS)
        return train, heldout or made

    def load(self) -> EntityData:
        """Read the files and derive what they do not give."""
        rows = self.rows()
        retain, known, unseen = self._kept(rows)
        unknown, heldout = self._unknown(rows, known)
        forget, paraphrased = rows["forget"], rows["forget_paraphrased"]
        sets = {"forget": forget, "forget_paraphrased": paraphrased, "retain": retain, "retain_unseen": unseen, "unknown": heldout}
        streams = {"forget": forget, "retain": retain, "known": known, "unknown": unknown}
        latent = {"forget": _asked(paraphrased) or _asked(forget), "known": _asked(unseen), "unknown": _asked(heldout)}
        data = EntityData(
            streams={name: tuple(part) for name, part in streams.items()},
            evaluation={name: tuple(part) for name, part in sets.items() if part},
            latent=latent,
            generic=tuple(row.answer for row in rows["generic"]),
            refusals=tuple(self.config.refusals),
            fingerprint="",
            notes={
                "unknown": "given" if rows["unknown"] else "invented names in the known questions",
                "latent forget": "paraphrased questions" if _asked(paraphrased) else "the questions that are trained on",
            },
        )
        return fingerprinted(data)
