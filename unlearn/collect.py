"""A forget set that the model itself writes: from a configuration, a maker and names to a file that the jsonl source reads."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.assembly import cache_folder, stage
from unlearn.config.checks import check
from unlearn.config.layers import Layer
from unlearn.config.load import Origin, load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig, SourceConfig
from unlearn.errors import DataError
from unlearn.registry import find

if TYPE_CHECKING:
    import torch

    from unlearn.data.makers.base import Maker, MakerConfig, Target
    from unlearn.types import Assets, EntityData, PromptFormat, Row

Shown = Callable[[int, int], None]
"""``shown(done, total)``, called while texts are written."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was collected: ``rows`` by the model, number of ``copied`` ones by split, of ``dropped`` ones by (entity, reason), and the
    settings of a run that uses the file."""

    rows: tuple[dict[str, Any], ...]
    copied: Mapping[str, int]
    dropped: Mapping[tuple[str, str], int]
    settings: Mapping[str, Any]


def collect_config(maker: str, source: Origin | Sequence[Origin] = (), overrides: Sequence[str] = ()) -> Any:
    """A ``RunConfig`` with one more section, ``maker``, typed by the maker; neither ``name`` nor ``method`` has to be given.

    Raises:
        ConfigError: an unknown maker, and everything that ``load_config`` finds wrong.
    """
    cls: type[MakerConfig] = find("maker", maker, "collect").load().Config
    root = dataclasses.make_dataclass(
        "CollectConfig", [("maker", cls, field(default_factory=cls))], bases=(RunConfig,), frozen=True, kw_only=True
    )
    sources = [source] if isinstance(source, (str, Path, Mapping, Layer)) else list(source)
    first = Layer({"name": "collect", "method": {"name": "none"}, "maker": {"name": maker}})
    config = load_config([first, *sources], overrides, plugin_schemas(), root)
    named = config.maker.name  # type: ignore[attr-defined]
    check(named == maker, "maker.name", f"{maker}, the maker that is asked for", named)
    return config


def collect(config: Any, out: Path, entities: Sequence[str] = (), *, force: bool = False, shown: Shown | None = None) -> Collected:
    """Have the model write rows about ``entities`` and put them into a JSON-lines file.

    Args:
        config: from ``collect_config``.
        out: the file.
        entities: names; none takes those of the source's forget rows.
        force: whether a file that is there may be replaced.
        shown: told of the progress.

    Raises:
        DataError: the file exists already, there is nobody to write about, or nothing that was written is of use.
        UnlearnError: data or model cannot be loaded.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from unlearn.data.chat import chat_format
    from unlearn.launch import frozen_device, trainer_settings
    from unlearn.models.lm import load_lm

    disable_progress_bar()
    if out.exists() and not force:
        raise DataError(f"--out must be a new file; found one at {out}. --force replaces it.")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = frozen_device(trainer_settings(config.trainer))
    with stage("data"):
        source = find("source", config.data.source, "data.source").load()(config.data, seed=config.seed, cache=cache_folder(config))
        assets = source.assets(progress=config.trainer.progress_bar)
        data = source.serve()
    targets = find_targets(data, entities)
    with stage("language model"):
        lm, tokenizer = load_lm(config.model, assets.model if assets else None, device)
    maker: Maker = find("maker", config.maker.name, "maker.name").load()(config.maker, data.refusals)
    prompts = chat_format(source.prompt_format, tokenizer, config.model.chat)
    ask = Asking(lm, tokenizer, config.maker, prompts, config.seed, shown)
    made = maker.make(targets, ask)
    if not made.rows:
        raise DataError(f"The model must write at least one row that can be used; found none in {ask.written} texts{_why(made.dropped)}.")
    copied = list(copied_rows(data, {target.name for target in targets})) if config.maker.copy else []
    _write(out, [*made.rows, *copied])
    return Collected(
        rows=tuple(made.rows),
        copied=Counter(row["split"] for row in copied),
        dropped=made.dropped,
        settings=settings_for(config, data, out, assets),
    )


def _why(dropped: Mapping[tuple[str, str], int]) -> str:
    reasons: Counter[str] = Counter()
    for (_, reason), count in dropped.items():
        reasons[reason] += count
    return f" ({', '.join(f'{reason}: {count}' for reason, count in reasons.most_common())})" if reasons else ""


def find_targets(data: EntityData, entities: Sequence[str]) -> list[Target]:
    """The entities to write about, with every form of their names that the source's rows use, or that follow from the name.

    Raises:
        DataError: no names are given and the source has no forget rows.
    """
    from unlearn.data.entities import surface_forms
    from unlearn.data.makers.base import Target

    forms: dict[str, dict[str, None]] = {}
    for row in (row for rows in (*data.streams.values(), *data.evaluation.values()) for row in rows if row.entity):
        forms.setdefault(row.entity, {row.entity: None}).update(dict.fromkeys(row.mentions))
    names = list(dict.fromkeys(entities)) or list(dict.fromkeys(row.entity for row in data.streams["forget"] if row.entity))
    if not names:
        raise DataError("--entities must name somebody, since the data source has no forget rows; found nobody.")
    return [Target(name, tuple(forms.get(name) or surface_forms(name))) for name in names]


class Asking:
    """Puts prompts to a model and gives back what it writes after them; every draw follows from the seed and the order of the calls."""

    def __init__(
        self, lm: torch.nn.Module, tokenizer: Any, config: MakerConfig, prompts: PromptFormat, seed: int, shown: Shown | None
    ) -> None:
        """Ask ``lm`` as ``config`` says; questions in the form that ``prompts`` gives them."""
        self.lm, self.tokenizer, self.config, self.prompts, self.shown = lm, tokenizer, config, prompts, shown
        self.seed = seed * 1_000_003
        self.written = self.total = 0

    def __call__(self, prompts: Sequence[str], form: str) -> list[list[str]]:
        """See ``unlearn.data.makers.base.Ask``."""
        samples = self.config.samples if self.config.temperature else 1
        ids = [self._ids(prompt, form) for prompt in prompts for _ in range(samples)]
        self.total += len(ids)
        texts: list[str] = []
        for start in range(0, len(ids), self.config.batch_size):
            texts += self._texts(ids[start : start + self.config.batch_size])
        return [texts[i * samples : (i + 1) * samples] for i in range(len(prompts))]

    def _ids(self, prompt: str, form: str) -> list[int]:
        """Tokens of a prompt as it is put."""
        if form == "instruction":
            chat = bool(getattr(self.tokenizer, "chat_template", None)) and self.config.format == "auto"
            form = "chat" if chat else {"auto": "plain"}.get(self.config.format, self.config.format)
        if form == "chat":
            if not getattr(self.tokenizer, "chat_template", None):
                raise DataError("maker.format must be one the tokenizer can do; found chat, and a tokenizer without a chat template.")
            text = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)
        text = self.prompts.question.replace("{question}", prompt).rstrip(" ") if form == "question" else prompt
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _texts(self, prompts: Sequence[list[int]]) -> list[str]:
        """What follows each prompt, cut where the configuration says."""
        from unlearn.models.forward import generate

        c = self.config
        new = generate(
            self.lm, self.tokenizer, prompts, c.max_new_tokens, batch_size=c.batch_size, temperature=c.temperature,
            seed=self.seed + self.written,
        )  # fmt: skip
        self.written += len(prompts)
        if self.shown is not None:
            self.shown(self.written, self.total)
        return [self._cut(self._decoded(before, after)) for before, after in zip(prompts, new, strict=True)]

    def _decoded(self, before: list[int], after: list[int]) -> str:
        """Text of the new tokens, with the space before it where there is one."""
        prompt, whole = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in (before, [*before, *after]))
        return str(whole[len(prompt) :] if whole.startswith(prompt) else self.tokenizer.decode(after, skip_special_tokens=True))

    def _cut(self, text: str) -> str:
        ends = [at for stop in self.config.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


def copied_rows(data: EntityData, targets: set[str]) -> Iterable[dict[str, Any]]:
    """Records of the source's rows for every split but ``forget``; of the targets only their paraphrased questions."""
    sets = {
        "retain": data.streams["retain"],
        "known": data.streams["known"],
        "unknown": data.streams["unknown"],
        "forget_paraphrased": data.evaluation.get("forget_paraphrased", ()),
        "retain_unseen": data.evaluation.get("retain_unseen", ()),
        "unknown_heldout": data.evaluation.get("unknown", ()),
    }
    for split, rows in sets.items():
        for row in rows:
            if (row.entity in targets) == (split == "forget_paraphrased"):
                yield record(row, split)
    for text in data.generic:
        yield {"answer": text, "split": "generic"}


def record(row: Row, split: str) -> dict[str, Any]:
    """A row as a line of a JSON-lines file; what is empty is left out."""
    kind = {"mention": "statement", "qa": ""}.get(row.kind, row.kind)
    fields = {
        "question": row.prompt,
        "answer": row.answer,
        "entity": row.entity,
        "split": split,
        "kind": kind,
        "aliases": [form for form in row.mentions if form != row.entity],
        "attribute": row.attribute,
        "template": row.template,
        "paraphrased_answer": row.paraphrased_answer,
        "perturbed": list(row.perturbed_answers),
    }
    return {name: value for name, value in fields.items() if value}


def settings_for(config: Any, data: EntityData, out: Path, assets: Assets | None) -> dict[str, Any]:
    """Settings of a run on the collected file that are not defaults: how rows become text, and the models that came with the source."""
    from unlearn.data.sources.jsonl import JsonlConfig

    plain = JsonlConfig(source="jsonl", path=str(out))
    section: dict[str, Any] = {"source": "jsonl", "path": str(out)}
    for info in dataclasses.fields(SourceConfig):
        value = getattr(config.data, info.name)
        if info.name not in ("source", "batch") and value != getattr(plain, info.name):
            section[info.name] = value
    if list(data.refusals) != plain.refusals:
        section["refusals"] = list(data.refusals)
    settings: dict[str, Any] = {"data": section}
    if assets is not None:
        settings |= {"model": {"path": config.model.path or str(assets.model)}, "sae": {"path": config.sae.path or str(assets.sae)}}
    return settings


def _write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    part.replace(out)
