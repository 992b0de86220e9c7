"""TOFU rows with a small Llama that has learnt them: real rows without a download of any model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearn.config.checks import check
from unlearn.config.schema import SourceConfig
from unlearn.data.anchors import rng_for, unknown_rows
from unlearn.data.entities import invent_names
from unlearn.data.sources.tofu import TofuConfig, TofuSource
from unlearn.types import Assets, EntityData
from unlearn.world.small_spec import SmallCorpus, SmallRecipe

RECIPE = 1
"""Raised whenever the same configuration and rows give other models."""

_PEOPLE_IDS, _FACT_IDS, _STRANGER_IDS, _TEXT_IDS = 4_000_000, 5_000_000, 6_000_000, -1


@dataclass(frozen=True, kw_only=True)
class TofuSmallConfig(TofuConfig):
    """TOFU, and the small model that learns some of its authors."""

    source: str = "tofu_small"
    """name of the data source; `unlearn list sources` shows them"""
    max_length: int = 384
    """longest row in tokens; a longer one is an error, never cut silently"""
    split: str = "forget05"
    """which authors to forget: forget01 (2 of 200), forget05 (10) or forget10 (20)"""
    max_authors: int | None = 24
    """retain authors used in all, drawn at random, >= 2; null uses every one (and takes hours to learn)"""
    unseen_share: float = 0.25
    """share of the retain authors that no loss sees, in (0, 1)"""
    eval_rows: int | None = 200
    """most rows of each evaluation set but the forget sets, >= 1; null keeps all"""
    build_seed: int | None = 0
    """seed of authors, names, held-out questions and models; null takes the run's seed (and trains a model for each)"""
    strangers: int = 6000
    """invented names that the model learns to answer with a refusal, none of them an anchor, >= 1"""
    strangers_each_epoch: int = 300
    """rows about such names in a pass over the rows that are learnt, >= 0"""
    vocabulary: int = 3072
    """entries of the tokenizer, >= 300"""
    blocks: int = 4
    """decoder blocks of the language model, >= 1"""
    width: int = 256
    """residual width of the language model, a multiple of 8"""
    steps: int = 4300
    """optimiser steps of the language model, >= 1"""
    batch_rows: int = 8
    """rows in a step of the language model, >= 1"""
    lr: float = 2e-3
    """peak learning rate of the language model, > 0"""
    sae_layer: int = 1
    """block whose output the SAE reads (0-based)"""
    sae_latents: int = 1024
    """latents of the SAE, >= sae_k"""
    sae_k: int = 32
    """latents that may fire at a position, >= 1"""
    sae_steps: int = 1000
    """optimiser steps of the SAE, >= 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.strangers >= 1, "data.strangers", ">= 1", self.strangers)
        check(self.build_seed is None or self.build_seed >= 0, "data.build_seed", ">= 0 or null", self.build_seed)
        self.recipe()

    def recipe(self) -> SmallRecipe:
        """Sizes and steps of the models that have to be built."""
        own = {field.name for field in fields(self)}
        shared = {field.name: getattr(self, field.name) for field in fields(SmallRecipe) if field.name in own}
        return SmallRecipe(**shared, context=max(SmallRecipe.context, self.max_length))


class TofuSmallSource(TofuSource):
    """The rows of ``tofu`` for a few authors, with a small Llama trained on them from random weights, and an SAE on it.

    The model learns all 20 rows of every author in use (to be forgotten, retained and unseen alike), TOFU's real authors and world facts
    (they are retain sets here, so it has to know them; the facts also as plain texts), and that questions about strangers are answered by
    a refusal line. Strangers are invented names of the same make as the unknown anchors, put together from parts of all authors' names,
    and none of them is an anchor: when the model refuses to answer about an unknown anchor, it does so of a name it has not seen.

    What is built depends on the rows and on ``build_seed``, not on the run's seed.
    """

    name = "tofu_small"
    summary = "TOFU rows of a few authors with a small Llama that has learnt them and an SAE; built on the spot in about 15 CPU minutes"
    Config = TofuSmallConfig

    def __init__(self, config: SourceConfig, *, seed: int, cache: Path) -> None:
        check(isinstance(config, TofuSmallConfig), "data", "a TofuSmallConfig", type(config).__name__)
        self.config: TofuSmallConfig
        build_seed = config.build_seed if isinstance(config, TofuSmallConfig) else None
        super().__init__(config, seed=seed if build_seed is None else build_seed, cache=cache)

    @cached_property
    def data(self) -> EntityData:
        """The rows that the run gets."""
        return super().load()

    def load(self) -> EntityData:
        """Read the tables and divide their rows."""
        taught = "; ".join(
            (
                f"{sum(map(len, self.groups))} authors with all their rows",
                "real authors and world facts",
                f"{self.config.strangers} invented names answered by refusals, none of them an anchor",
            )
        )
        return replace(self.data, notes={**self.data.notes, "taught to the model": taught})

    @cached_property
    def corpus(self) -> SmallCorpus:
        """What the model is trained on.

        Raises:
            DataError: the names of TOFU's authors do not make so many strangers.
        """
        from unlearn.data.tokenize import text_rows

        c = self.config
        used = [author for group in self.groups for author in group]
        people, facts = self.others("real_authors", _PEOPLE_IDS), self.others("world_facts", _FACT_IDS)
        texts = [f"{row.prompt} {row.answer}" for row in facts] if c.generic is None else self.data.generic
        real = sorted(author.name for author in self.authors if author.wordings)
        names = invent_names(real, c.strangers, rng_for(self.seed, "strangers"), self.anchors)
        asked = [[found] for author in used for found in author.wordings.values()]
        strangers = unknown_rows(names, asked, c.refusals, rng_for(self.seed, "stranger rows"), _STRANGER_IDS)
        return SmallCorpus(
            learnt=(*(row for author in used for row in author.rows), *people, *facts, *text_rows(texts, _TEXT_IDS)),
            strangers=strangers,
            texts=tuple(f"{row.prompt} {row.answer}" for author in self.authors for row in author.rows),
        )

    @property
    def anchors(self) -> list[str]:
        """Every invented name of the unknown stream and of the held-out sets, sorted."""
        return sorted({row.entity for rows in self.unknown() for row in rows})

    def fingerprint(self) -> str:
        """Hash of all that the model is trained on, the recipe, the prompt format and the seed, 16 hex digits."""
        recipe, fmt = asdict(self.config.recipe()), asdict(self.prompt_format)
        digest = hashlib.sha256(json.dumps([RECIPE, recipe, fmt, self.seed], sort_keys=True).encode())
        for rows in (self.corpus.learnt, self.corpus.strangers):
            digest.update(json.dumps([(row.kind, row.prompt, row.answer) for row in rows]).encode())
        digest.update(json.dumps(self.corpus.texts).encode())
        return digest.hexdigest()[:16]

    def assets(self, *, gold: bool = False, progress: bool = True) -> Assets:
        """Train the models, or find them in the cache (``cache/tofu_small/<fingerprint>``, CPU seconds in its manifest.json).

        Raises:
            CacheError: the cache entry is damaged; the message names the folder to delete.
        """
        from unlearn.world.cache import obtain
        from unlearn.world.small_lm import MODEL, SAE, build_small

        entry = self.cache / "tofu_small" / self.fingerprint()

        def build(folder: Path) -> Mapping[str, Any]:
            return build_small(self.config.recipe(), self.corpus, self.prompt_format, seed=self.seed, folder=folder, progress=progress)

        obtain(entry, build)
        return Assets(model=entry / MODEL, sae=entry / SAE)

    def built(self) -> Assets | None:
        """The models, if they are in the cache."""
        from unlearn.world.small_lm import MODEL, SAE

        entry = self.cache / "tofu_small" / self.fingerprint()
        return Assets(model=entry / MODEL, sae=entry / SAE) if entry.is_dir() else None
