"""The embedded world as a data source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from unlearn.config.checks import check
from unlearn.config.schema import SourceConfig
from unlearn.data.sources.base import Source
from unlearn.types import Assets, EntityData
from unlearn.world.encyclopaedia import Encyclopaedia, encyclopaedia
from unlearn.world.prompts import PROMPTS
from unlearn.world.rows import Roles, assign_roles, world_rows
from unlearn.world.spec import WorldSpec
from unlearn.world.templates import QUESTION_FORMAT


@dataclass(frozen=True, kw_only=True)
class WorldConfig(SourceConfig):
    """The embedded world: who is forgotten, and how large everything is."""

    source: str = "world"
    """name of the data source; `unlearn list sources` shows them"""
    max_length: int = 64
    """longest row in tokens; a longer one is an error, never cut silently"""
    question_format: str = QUESTION_FORMAT
    """text around a question, as the corpus writes it; must contain {question}"""
    append_eos: bool = False
    """whether the end-of-sequence token follows the answer; off: a label is the fact and nothing else"""
    world_seed: int | None = None
    """seed of the names, the facts and the models; null takes the run's seed"""
    n_forget: int = 10
    """known people who are forgotten, >= 1"""
    n_retain: int = 70
    """known people whose rows the losses may use, >= 1"""
    n_unseen: int = 20
    """known people who are in no loss term, >= 1"""
    forget_set: int = 0
    """which people are forgotten: 0 takes the first n_forget of the known ones, 1 the next; the models stay the same"""
    forgotten_sets: list[int] = field(default_factory=list)
    """forget sets of earlier requests: their people are known, too, but in no row any more"""
    n_tail: int = WorldSpec.n_tail
    """strangers in the corpus, >= 1"""
    n_unknown: int = WorldSpec.n_unknown
    """unknown names that training may use, >= 1"""
    n_heldout: int = WorldSpec.n_heldout
    """unknown names kept for measurement, >= 1"""
    blocks: int = WorldSpec.blocks
    """decoder blocks of the language model, >= 1"""
    width: int = WorldSpec.width
    """residual width of the language model, a multiple of 8"""
    steps: int = WorldSpec.steps
    """optimiser steps of the language model, >= 1"""
    sae_layer: int = WorldSpec.sae_layer
    """block whose output the SAEs read (0-based)"""
    sae_latents: int = WorldSpec.sae_latents
    """latents of the SAE, >= sae_k"""
    heldout_latents: int = WorldSpec.heldout_latents
    """latents of the second SAE, which is for measurement only, >= sae_k"""
    sae_k: int = WorldSpec.sae_k
    """latents that may fire at a position, >= 1"""
    sae_steps: int = WorldSpec.sae_steps
    """optimiser steps of each SAE, >= 1"""
    sae_rows: int = WorldSpec.sae_rows
    """packed corpus rows whose activations the SAEs are trained on, >= 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_forget", "n_retain", "n_unseen"):
            check(getattr(self, name) >= 1, f"data.{name}", ">= 1", getattr(self, name))
        check(self.world_seed is None or self.world_seed >= 0, "data.world_seed", ">= 0 or null", self.world_seed)
        last = self.n_known // self.n_forget - 1
        check(0 <= self.forget_set <= last, "data.forget_set", f"in [0, {last}]", self.forget_set)
        before = self.forgotten_sets
        fit = all(0 <= n <= last for n in before) and len({*before, self.forget_set}) == len(before) + 1
        check(fit, "data.forgotten_sets", f"different numbers in [0, {last}], data.forget_set not among them", before)
        self.spec()

    @property
    def n_known(self) -> int:
        """Names in the encyclopaedia: those that are forgotten now or were before, retained, unseen."""
        return self.n_forget * (1 + len(self.forgotten_sets)) + self.n_retain + self.n_unseen

    def spec(self) -> WorldSpec:
        """The parameters of the world that has to be built."""
        own = {each.name for each in fields(self)}
        shared = {each.name: getattr(self, each.name) for each in fields(WorldSpec) if each.name in own}
        return WorldSpec(**{**shared, "n_known": self.n_known})


class WorldSource(Source):
    """Serves a synthetic encyclopaedia, its language model and its SAEs; needs no download."""

    name = "world"
    summary = "synthetic encyclopaedia with a tiny Llama that has learnt it, two SAEs and a gold model; built on the spot"
    Config = WorldConfig

    def __init__(self, config: SourceConfig, *, seed: int, cache: Path) -> None:
        super().__init__(config, seed=seed, cache=cache)
        check(isinstance(config, WorldConfig), "data", "a WorldConfig", type(config).__name__)
        self.config: WorldConfig = config  # type: ignore[assignment]

    @property
    def world_seed(self) -> int:
        """Seed of the world: the configured one, else the run's."""
        return self.seed if self.config.world_seed is None else self.config.world_seed

    def encyclopaedia(self) -> Encyclopaedia:
        """Who exists in the world, and the facts about them."""
        return encyclopaedia(self.config.spec(), self.world_seed)

    def roles(self) -> Roles:
        """Who is forgotten, retained and unseen."""
        c, known = self.config, self.encyclopaedia().known
        sizes = {"n_forget": c.n_forget, "n_retain": c.n_retain, "n_unseen": c.n_unseen}
        return assign_roles(known, **sizes, forget_set=c.forget_set, forgotten_sets=c.forgotten_sets)

    def forgotten(self) -> tuple[str, ...]:
        """Who must be unknown in the end: those who are forgotten, and those who were before."""
        c, known = self.config, self.encyclopaedia().known
        before = [name for n in sorted(c.forgotten_sets) for name in known[n * c.n_forget : (n + 1) * c.n_forget]]
        return (*before, *self.roles().forget)

    def assets(self, *, gold: bool = False, progress: bool = True) -> Assets:
        """Build the world, or find it in the cache.

        Raises:
            CacheError: the cached world is damaged; the message names the folder to delete.
        """
        from unlearn.world.build import build_world

        paths = build_world(
            self.config.spec(), seed=self.world_seed, cache=self.cache, forgotten=self.forgotten(), gold=gold, progress=progress
        )
        return Assets(model=paths.model, sae=paths.sae, heldout_sae=paths.heldout_sae, gold=paths.gold)

    def built(self) -> Assets | None:
        """The world's models, if they are in the cache."""
        from unlearn.world.build import HELDOUT_SAE, MODEL, SAE

        entry = self.cache / "world" / self.config.spec().fingerprint(self.world_seed)
        return Assets(model=entry / MODEL, sae=entry / SAE, heldout_sae=entry / HELDOUT_SAE) if entry.is_dir() else None

    def prompts(self) -> Mapping[str, Sequence[str]]:
        """The prompt attack in the words of the corpus."""
        return PROMPTS

    def load(self) -> EntityData:
        """Make the rows; no model is needed for that."""
        spec, seed, roles = self.config.spec(), self.world_seed, self.roles()
        identity = f"{spec.fingerprint(seed)} {' '.join(roles.forget)} / {' '.join(roles.retain)} / {' '.join(roles.unseen)}"
        return world_rows(
            self.encyclopaedia(),
            roles,
            seed=seed,
            fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
            notes={"world": spec.fingerprint(seed), "forgotten": ", ".join(roles.forget)},
        )
