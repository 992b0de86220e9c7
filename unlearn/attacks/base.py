"""The contract of an attack: what it is given, what it gives back, and how that becomes results.

An attack asks whether the facts are gone or only muted. Everything it does to the target it also does, with the same budget, to unknown
entities with made-up facts; what it gets out of those is chance (or what it taught itself), and only what goes beyond is knowledge.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unlearn.attacks.facts import Facts
from unlearn.errors import DataError
from unlearn.functional.contrast import Contrast, cell_means, contrast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.latents.selection import Selection
    from unlearn.models.sae import FrozenSAE
    from unlearn.types import EntityData

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Fields of an attack's section ``attack.<name>``; an attack adds its own."""


@dataclass(frozen=True, kw_only=True)
class AttackContext:
    """Everything an attack may use; what the model does not come with is None."""

    lm: PreTrainedModel
    """the model under attack, in its final form; never changed: ``copy`` gives one that may be"""
    reader: Reader
    """makes tokens of rows"""
    data: EntityData
    """every row of the source"""
    target: Facts
    """the facts to be forgotten"""
    control: Facts
    """the same sentences about unknown entities, with made-up facts"""
    seed: int = 0
    original: Callable[[], PreTrainedModel] | None = None
    """loads the model before unlearning"""
    bare: Callable[[], PreTrainedModel] | None = None
    """for a method that acts at inference: loads the weights without what acts on them"""
    sae: FrozenSAE | None = None
    selection: Selection | None = None
    """SAE latents that tell them apart"""
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """wordings of the prompt attack in the source's own language; empty takes the attack's"""
    tick: Callable[[float], None] = lambda share: None
    """told of the progress, a share in [0, 1]"""

    def copy(self) -> PreTrainedModel:
        """A copy of the model that may be changed; what acts at inference acts on it too, and adapters are merged."""
        lm: Any = copy.deepcopy(self.lm)
        if hasattr(lm, "merge_and_unload"):
            lm = lm.merge_and_unload()
        copied: PreTrainedModel = lm.eval()
        return copied

    def against(self, lm: PreTrainedModel) -> AttackContext:
        """The same for another model, such as the one that never saw the target."""
        return replace(self, lm=lm, bare=None)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an attack got out, for every setting it tried.

    ``cells`` name the settings. ``target`` [C, N] and ``control`` [C, M] say how much of each row came out right, in [0, 1] (nan: not
    tested in this cell); ``target_groups`` and ``control_groups`` name the rows' entities. ``extra`` are further results, by full key.
    """

    cells: tuple[str, ...]
    target: Array
    control: Array
    target_groups: tuple[str, ...]
    control_groups: tuple[str, ...]
    extra: Mapping[str, float] = field(default_factory=dict)

    def contrast(self, bootstrap: int, seed: int) -> Contrast:
        """Each side at its best cell."""
        sides = (self.target, self.target_groups), (self.control, self.control_groups)
        return contrast(*sides[0], *sides[1], n=bootstrap, seed=seed)

    def results(self, key: str, measure: str, bootstrap: int, seed: int) -> dict[str, float]:
        """``<key>_<measure>``, ``<key>_control``, ``<key>_excess`` with its interval, and both sides ``@<cell>``."""
        found = self.contrast(bootstrap, seed)
        results = {f"{key}_{measure}": found.target, f"{key}_control": found.control, f"{key}_excess": found.excess}
        if not np.isnan(found.low):
            results |= {f"{key}_excess/ci_low": found.low, f"{key}_excess/ci_high": found.high}
        if len(self.cells) > 1:
            for name, values in ((measure, self.target), ("control", self.control)):
                means = zip(self.cells, cell_means(values).tolist(), strict=True)
                results |= {f"{key}_{name}@{cell}": mean for cell, mean in means if not np.isnan(mean)}
        return {**results, **self.extra}

    def record(self) -> dict[str, Any]:
        """As plain values for a JSON file; nan becomes null."""
        sides = {
            name: [[None if np.isnan(v) else v for v in row] for row in getattr(self, name).tolist()] for name in ("target", "control")
        }
        groups = {"target_groups": list(self.target_groups), "control_groups": list(self.control_groups)}
        return {"cells": list(self.cells), **sides, **groups, "extra": dict(self.extra)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Outcome:
        """What ``record`` wrote.

        Raises:
            DataError: it does not fit.
        """
        try:
            sides = {name: np.array(record[name], dtype=float).reshape(len(record["cells"]), -1) for name in ("target", "control")}
            groups = {name: tuple(record[name]) for name in ("target_groups", "control_groups")}
            return cls(cells=tuple(record["cells"]), **sides, **groups, extra=dict(record["extra"]))  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"An attack's outcome must have cells, target, control and their groups; found {error!r}.") from error


class Attack(ABC):
    """One way to get facts out of a model.

    A plug-in is one file: its sources, a configuration and ``run``. ``name``, ``summary``, ``paper``, ``measure`` and ``quick`` are
    literals in the class body, so that they can be listed without importing the file. An attack brings no facts of its own: it may train
    on facts of the target only to ask for others.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    measure: ClassVar[str] = "accuracy"
    """what its share of right answers is called in the results: ``attack/<name>_<measure>``"""
    quick: ClassVar[Mapping[str, Any] | None] = None
    """changes to its configuration in the suite ``quick``; None leaves it out of that suite"""
    Config: ClassVar[type[AttackConfig]] = AttackConfig

    def __init__(self, config: AttackConfig) -> None:
        self.config: Any = config

    def missing(self, context: AttackContext) -> str | None:
        """What it needs and the context does not hold, in words; None where nothing is missing."""
        return None

    @abstractmethod
    def run(self, context: AttackContext) -> Outcome:
        """Attack the model on both sides; ``context.lm`` is as before afterwards, and every draw follows from ``context.seed``."""


def outcome(context: AttackContext, cells: Sequence[str], target: Sequence[Array], control: Sequence[Array], **extra: float) -> Outcome:
    """The outcome of an attack that tests every row of ``context.target.test`` and ``context.control.test`` in every cell."""
    return Outcome(
        cells=tuple(cells),
        target=np.stack([np.asarray(hits, dtype=float) for hits in target]),
        control=np.stack([np.asarray(hits, dtype=float) for hits in control]),
        target_groups=tuple(row.entity for row in context.target.test),
        control_groups=tuple(row.entity for row in context.control.test),
        extra=extra,
    )
