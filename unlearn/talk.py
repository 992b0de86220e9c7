"""A model before and after unlearning, asked side by side; and whether its latents take the entity in a question for a known one.

What is talked to, with the place of every part::

    open_conversation(model)
        a finished run                  restore: final model, SAE, probe, rows           subject
        an exported folder              its weights; the rest by its provenance.json     exported
        any model's folder or hub id    --base, and the sections data and sae            subject
        recognition_of: probe fitted on the original model                               measuring
    Conversation.ask(questions) -> replies                                               evaluation.answers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.assembly import cache_folder
from unlearn.config.benchmarks import benchmark_configs
from unlearn.config.load import Origin, load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.data.asking import Names, Question
from unlearn.errors import ConfigError, UnlearnError
from unlearn.exported import load_exported
from unlearn.measuring import reader_of, recognition_of
from unlearn.registry import find
from unlearn.subject import Models, Subject, find_subject, load_models
from unlearn.tracking.exported import PROVENANCE
from unlearn.tracking.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.evaluation.latent import LatentMeter
    from unlearn.types import EntityData

PLACEHOLDER = "unknown"
"""Stands for the answer while a question is turned into tokens; the model does not see it."""
NO_SAE = "there is no SAE to read the model with"
ROOM = 8
"""Tokens that an answer must have room for."""


@dataclass(frozen=True)
class Side:
    """What one model makes of a question: its answer, and P(unknown) of the entity where it can be told."""

    answer: str
    p_unknown: float | None = None

    @property
    def verdict(self) -> str:
        """``known`` or ``unknown``; empty where there is none."""
        return "" if self.p_unknown is None else "unknown" if self.p_unknown >= 0.5 else "known"


@dataclass(frozen=True)
class Reply:
    """A question with what both models make of it; ``before`` is None where there is no original model."""

    question: Question
    before: Side | None
    after: Side


@dataclass(kw_only=True)
class Conversation:
    """Two models that can be asked; ``silent`` says why there is no verdict on entities, ``alone`` why no original model stands beside it;
    empty where there is one. ``auc`` is that of the probe on names it was not fitted on, where it was measured."""

    after: PreTrainedModel
    before: PreTrainedModel | None
    reader: Reader
    names: Names = field(default_factory=Names)
    data: EntityData | None = None
    meter: LatentMeter | None = None
    silent: str = ""
    alone: str = ""
    method: str = ""
    auc: float | None = None

    def read(self, typed: str) -> Question:
        """The question in what was typed."""
        return self.names.read(typed)

    def strange_words(self, question: Question) -> list[str]:
        """Words of the question for which the model's vocabulary has nothing."""
        tokenizer = self.reader.tokenizer
        if tokenizer.unk_token_id is None:
            return []
        encoded = tokenizer(question.text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [s for i, s in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if i == tokenizer.unk_token_id]
        return list(dict.fromkeys(question.text[start:end].strip() for start, end in spans))

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Put the questions to both models.

        Raises:
            DataError: a question has more tokens than the models take.
        """
        after = self._side(self.after, questions)
        before = [None] * len(questions) if self.before is None else self._side(self.before, questions)
        return [Reply(*reply) for reply in zip(questions, before, after, strict=True)]

    def _side(self, lm: PreTrainedModel, questions: Sequence[Question]) -> list[Side]:
        from unlearn.evaluation.answers import answer

        rows = self.reader.tokens([question.row(PLACEHOLDER) for question in questions])
        said = answer(lm, rows, self.reader)
        named = [i for i, question in enumerate(questions) if question.name]
        found: dict[int, float] = {}
        if self.meter is not None and named:
            p = self.meter.p_unknown(self.meter.read(lm, [rows[i] for i in named]))
            found = dict(zip(named, map(float, p), strict=True))
        return [Side(text, found.get(i)) for i, text in enumerate(said)]


def open_conversation(
    model: str,
    base: str | None = None,
    sources: Sequence[Origin] = (),
    overrides: Sequence[str] = (),
    max_new_tokens: int | None = None,
) -> Conversation:
    """Load what is talked to.

    Args:
        model: folder of a finished run, of an exported model, of any model, or hub id.
        base: folder or hub id of the original model; a run knows it, an exported folder says it.
        sources: for a model that is no run: YAML files with the sections ``data`` and ``sae``.
        overrides: ``key=value`` texts, they win.
        max_new_tokens: longest answer; None takes the configuration's.

    Raises:
        UnlearnError: the model or the original one cannot be loaded.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    place = Path(model).expanduser()
    if (place / PROVENANCE).is_file() and not sources and not overrides:
        made = _of_export(place, base)
    else:
        made = _of_subject(find_subject(model, base), sources, overrides)
    longest = max_new_tokens or made.reader.max_new_tokens
    made.reader = replace(made.reader, max_length=_context(made.after), max_new_tokens=longest)
    return made


def _context(lm: PreTrainedModel) -> int:
    """Most tokens of a question with room for an answer."""
    from unlearn.models.decoder import text_config

    return max(ROOM, int(getattr(text_config(lm), "max_position_embeddings", None) or 4096) - ROOM)


def _of_subject(subject: Subject, sources: Sequence[Origin], overrides: Sequence[str]) -> Conversation:
    """A finished run, or any model."""
    if subject.run is not None:
        config = load_config(subject.run.config_path, schemas=plugin_schemas())
        models = load_models(subject, config)
        made = _with_data(config, models, {}, method=config.method.name)
        made.auc = read_json(subject.run.results_path).get("latent/probe_auc")
        return made
    if sources or overrides:
        configs = benchmark_configs(Path("chat"), (), sources, overrides, model=subject.name)
        if len(configs) != 1:
            raise ConfigError(f"A conversation takes the names of one data source; found {len(configs)} in `benchmarks`.")
        config = next(iter(configs.values()))
        return _with_data(config, load_models(subject, config), subject.identity(config))
    config = load_config(
        {"name": "chat", "model": {"path": subject.name}, "data": {"source": "jsonl", "path": "none"}, "method": {"name": "none"}},
        schemas=plugin_schemas(),
    )
    return _without_data(config, load_models(subject, config), NO_SAE)


def _with_data(config: RunConfig, models: Models, identity: Mapping[str, str], method: str = "") -> Conversation:
    """A conversation that knows the names of the data source."""
    source = find("source", config.data.source, "data.source").load()(config.data, seed=config.seed, cache=cache_folder(config))
    data = models.assembly.data if models.assembly is not None else source.serve()
    reader = models.assembly.suite.reader if models.assembly is not None else reader_of(config, source, data, models)
    meter, _ = recognition_of(config, data, reader, models, identity)
    return Conversation(
        after=models.lm,
        before=None if models.original is None else models.original(),
        reader=reader,
        names=Names.of(data),
        data=data,
        meter=meter,
        silent="" if meter is not None else NO_SAE,
        method=method,
    )


def _without_data(config: RunConfig, models: Models, silent: str, method: str = "") -> Conversation:
    """A conversation in which only [brackets] mark names, and in which nothing is told of them."""
    from unlearn.data.chat import chat_format
    from unlearn.data.reader import Reader
    from unlearn.types import PromptFormat

    d, e = config.data, config.evaluation
    plain = PromptFormat(question=d.question_format, separator=d.answer_separator, end=d.answer_end, append_eos=False)
    reader = Reader(
        tokenizer=models.tokenizer,
        prompt_format=chat_format(plain, models.tokenizer, config.model.chat),
        refusals=(),
        max_length=d.max_length,
        batch_size=e.batch_size,
        max_new_tokens=e.max_new_tokens,
    )
    before = None if models.original is None else models.original()
    return Conversation(after=models.lm, before=before, reader=reader, silent=silent, method=method)


def _of_export(folder: Path, base: str | None) -> Conversation:
    """An exported folder; its original model, SAE and rows are found by what it says of itself, as far as they are there."""
    found = load_exported(folder, base)
    made: Conversation | None = None
    if found.rows_trouble is None:
        try:
            made = _with_data(found.config, found.models, found.subject.identity(found.config), found.method)
        except UnlearnError as error:
            found.rows_trouble = str(error)
    made = made or _without_data(found.config, found.models, found.rows_trouble or NO_SAE, found.method)
    made.alone = found.base_trouble or ""
    made.auc = found.probe_auc
    return made
