"""Known and unknown entities of a model: ask, count right answers, label, and go on where an earlier run left off."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.assembly import cache_folder, stage
from unlearn.data.labels import LABELS, Fact, LabelFile, Rule, hits_of, read_facts
from unlearn.errors import DataError
from unlearn.registry import find

if TYPE_CHECKING:
    from unlearn.config.schema import RunConfig
    from unlearn.data.sources.base import Source
    from unlearn.types import PromptFormat

Shown = Callable[[int, int], None]
"""``shown(done, total)``, called after each entity."""

SAVE_EVERY = 20
"""Entities between two writes of the file."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What was done: number of entities by label, of those that were labelled before, and right answers by attribute and label."""

    counts: Mapping[str, int]
    before: int
    attributes: Mapping[str, tuple[int, int]]
    """attribute -> (entities that were asked, entities for which it is right)"""


def facts_of(config: RunConfig, path: Path | None) -> list[Fact]:
    """Facts of a file, or of the configuration's source.

    A file holds JSON lines of {entity, question, answers}, PopQA's records, or an entity file of the source ``wikidata``.

    Args:
        config: names the source.
        path: the file; None takes the source's own facts.

    Raises:
        DataError: the file cannot be used, or the source offers no facts.
    """
    if path is None:
        source = _source(config)
        facts = getattr(source, "facts", None)
        if facts is None:
            raise DataError(f"--entities must be given, since the source {config.data.source} holds no facts; found none.")
        return list(facts())
    return read_any(path)


def read_any(path: Path) -> list[Fact]:
    """Facts of a file of any of the three kinds, told apart by the first record's fields.

    Raises:
        DataError: it cannot be read, or is none of them.
    """
    from unlearn.data.sources.popqa import read_popqa
    from unlearn.data.sources.tables import read_rows
    from unlearn.data.sources.wikidata import read_wikidata, type_of

    if not path.is_file():
        raise DataError(f"--entities must be a file; found none at {path}.")
    first = next((row for row in read_rows(path) if isinstance(row, dict)), {})
    if "s_pop" in first:
        return read_popqa(path)
    return read_wikidata(path) if type_of(first) else read_facts(path)


def _source(config: RunConfig) -> Source:
    source: Source = find("source", config.data.source, "data.source").load()(config.data, seed=config.seed, cache=cache_folder(config))
    return source


def label(
    config: RunConfig, out: Path, entities: Path | None = None, rule: Rule | None = None, *, force: bool = False, shown: Shown | None = None
) -> Labelled:
    """Label every entity of a list and keep the labels in a file; entities that the file labels already are not asked again.

    Questions are put in the form of the configuration's source. What an entity is asked depends on the seed and its name alone, so that a
    run that was interrupted gives the same labels as one that was not.

    Args:
        config: names model, source and seed.
        out: the labels file.
        entities: a file of facts; None takes the source's own.
        rule: thresholds and sampling; None takes the paper's.
        force: whether a file that was made in another way may be replaced.
        shown: told of the progress.

    Raises:
        DataError: nobody is to be labelled, or the file was made with another model, rule, seed or form of questions.
        UnlearnError: model or facts cannot be loaded.
    """
    rule = rule or Rule()
    facts = facts_of(config, entities)
    by_entity: dict[str, list[Fact]] = {}
    for fact in facts:
        by_entity.setdefault(fact.entity, []).append(fact)
    if not by_entity:
        raise DataError("--entities must hold somebody to label; found nobody.")
    ask = Asker(config, rule)
    found = opened(out, ask.settings, force)
    todo = [name for name in by_entity if name not in found.entities]
    before = len(by_entity) - len(todo)
    try:
        for done, name in enumerate(todo, start=1):
            hits = ask(name, by_entity[name])
            found.entities[name] = {"label": rule.label(hits), "hits": hits}
            if done % SAVE_EVERY == 0:
                found.write(out)
            if shown is not None:
                shown(before + done, len(by_entity))
    finally:
        found.write(out)
    own = {name: found.entities[name] for name in by_entity}
    return Labelled(counts=_counts(own), before=before, attributes=_attributes(own, rule))


def opened(out: Path, settings: Mapping[str, Any], force: bool) -> LabelFile:
    """The labels so far: of the file if it is there and was made in the same way.

    Raises:
        DataError: it was made in another way, and may not be replaced.
    """
    if not out.exists():
        return LabelFile(dict(settings))
    try:
        found = LabelFile.read(out)
    except DataError:
        if force:
            return LabelFile(dict(settings))
        raise
    other = [key for key, value in settings.items() if found.settings.get(key) != value]
    if not other:
        return found
    if force:
        return LabelFile(dict(settings))
    raise DataError(
        f"--out must be a new file or one made in the same way; {out} has {other[0]} {found.settings.get(other[0])!r}, "
        f"now {settings[other[0]]!r}. --force replaces it."
    )


def _counts(entities: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(str(entry["label"]) for entry in entities.values())
    return {name: counts[name] for name in LABELS}


def _attributes(entities: Mapping[str, Mapping[str, Any]], rule: Rule) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for entry in entities.values():
        for attribute, hits in entry["hits"].items():
            asked, right = found.get(attribute, (0, 0))
            found[attribute] = (asked + 1, right + (hits >= rule.hits))
    return found


class Asker:
    """Puts the questions about an entity to a model, several times each."""

    def __init__(self, config: RunConfig, rule: Rule) -> None:
        """Load the model that the configuration names, or the source brings along."""
        import torch
        from transformers.utils.logging import disable_progress_bar

        from unlearn.data.chat import chat_format
        from unlearn.launch import frozen_device, trainer_settings
        from unlearn.models.bits import weights_name
        from unlearn.models.identity import identity
        from unlearn.models.lm import load_lm

        disable_progress_bar()
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        self.rule, self.seed, self.batch_size = rule, config.seed, config.evaluation.batch_size
        source = _source(config)
        with stage("language model"):
            assets = source.assets(progress=config.trainer.progress_bar) if config.model.path is None else None
            device = frozen_device(trainer_settings(config.trainer))
            self.lm, self.tokenizer = load_lm(config.model, assets.model if assets else None, device)
        self.prompts: PromptFormat = chat_format(source.prompt_format, self.tokenizer, config.model.chat)
        place = config.model.path or (assets.model if assets else "")
        self.settings: dict[str, Any] = {
            "rule": asdict(rule),
            "model": identity(place, config.model.revision),
            "dtype": weights_name(config.model),
            "seed": config.seed,
            "question_format": self.prompts.question,
        }

    def __call__(self, name: str, facts: Sequence[Fact]) -> dict[str, int]:
        """Right answers among ``rule.samples``, by attribute; of several questions about one attribute the best counts."""
        from unlearn.data.tokenize import stop_ids
        from unlearn.models.forward import generate

        prompts = [self._ids(fact.question) for fact in facts for _ in range(self.rule.samples)]
        new = generate(
            self.lm, self.tokenizer, prompts, self.rule.max_new_tokens, batch_size=self.batch_size,
            temperature=self.rule.temperature, stop_ids=stop_ids(self.tokenizer, self.prompts),
            seed=zlib.crc32(f"{self.seed} {name}".encode()),
        )  # fmt: skip
        texts = [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in new]
        hits: dict[str, int] = {}
        for place, fact in enumerate(facts):
            count = hits_of(texts[place * self.rule.samples : (place + 1) * self.rule.samples], fact)
            hits[fact.attribute] = max(count, hits.get(fact.attribute, 0))
        return hits

    def _ids(self, question: str) -> list[int]:
        text = self.prompts.question.replace("{question}", question).rstrip(" ")
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
