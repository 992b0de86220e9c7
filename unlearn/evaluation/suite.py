"""One object that measures a model: answers, recognition, collapse, and the original model as the base of comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.data.swap import matched_rows
from unlearn.errors import CacheError
from unlearn.evaluation.answers import measure_answers
from unlearn.evaluation.behaviour import behaviour, utility
from unlearn.evaluation.collapse import CONTINUATIONS, answer_entropy, free_text, generic_text, verdict
from unlearn.evaluation.depth import lens_ranks, measure_depth
from unlearn.evaluation.privacy import against_gold, comparable, membership
from unlearn.evaluation.shard import kept_or_made
from unlearn.models.decoder import in_eval_mode
from unlearn.tracking.files import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.config.schema import EvaluationConfig
    from unlearn.data.reader import Reader
    from unlearn.data.tokenize import TokenRow
    from unlearn.evaluation.latent import LatentMeter
    from unlearn.evaluation.places import PlaceMeter
    from unlearn.latents.selection import Selection
    from unlearn.models.reference import ReferenceStore
    from unlearn.types import EntityData

Results = dict[str, float | str]


@dataclass(frozen=True)
class Measurement:
    """Results by key, the answers to every row of every evaluation set, and per-row numbers that other models are compared with."""

    results: dict[str, float]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rows: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Suite:
    """Everything needed to measure a model.

    ``base`` is the measurement of the original model; set it once, before training, with ``measure_base``. ``gold`` is that of the model
    that never saw the forget entities, where there is one. ``original`` and ``gold_model`` load those models; without the first the depth
    of forgetting is not measured, without the second it is measured against unknown names.

    What a model of somebody else's does not come with may be left out, and what needs it is then not measured: without ``meter`` and
    ``places`` (an SAE) recognition, without ``reference`` (the original model) and ``layer`` the distance to the original on generic text,
    without ``base`` the verdict on collapse.
    """

    data: EntityData
    generic: Sequence[TokenRow]
    reader: Reader
    config: EvaluationConfig
    seed: int
    meter: LatentMeter | None = None
    selection: Selection | None = None
    reference: ReferenceStore | None = None
    layer: int | None = None
    places: PlaceMeter | None = None
    base: Measurement | None = None
    gold: Measurement | None = None
    original: Callable[[], PreTrainedModel] | None = None
    gold_model: Callable[[], PreTrainedModel] | None = None

    def stages(self) -> dict[str, int]:
        """The stages that ``measure`` announces, in their order, with the rows that the model reads in each."""
        found: dict[str, int] = {}
        for name, rows in self.data.evaluation.items():
            wrong = sum(len(row.perturbed_answers) + bool(row.paraphrased_answer and row.perturbed_answers) for row in rows)
            found[f"answers: {name}"] = 2 * len(rows) + wrong + (len(self.data.holdout) if name == self.data.members else 0)
        meters = [meter for meter in (self.places, self.meter) if meter is not None]
        if meters:
            found["recognition"] = sum(len(meter.groups[group].tokens) for meter in meters for group in ("forget", "unknown"))
        return found | {"generic text": len(self.generic) + len(self.generic[:CONTINUATIONS])}

    def measure(self, lm: PreTrainedModel, announce: Callable[[str], None] = lambda stage: None) -> Measurement:
        """Every metric of the model as it stands, under the keys of the results.

        Args:
            lm: the model.
            announce: called with the name of each stage before it starts.
        """
        with in_eval_mode(lm):
            return self._measure(lm, announce)

    def _measure(self, lm: PreTrainedModel, announce: Callable[[str], None]) -> Measurement:
        results: dict[str, float] = {}
        texts: dict[str, Sequence[str]] = {}
        kept: dict[str, list[float]] = {}
        for name, rows in self.data.evaluation.items():
            announce(f"answers: {name}")
            records = measure_answers(lm, rows, self.reader)
            results |= records.summary(name, self.config.bootstrap, self.seed)
            texts[name] = records.texts
            if name == self.data.members:
                kept = comparable(lm, records, self.data.holdout, self.reader)
                results |= membership(kept)
        results |= behaviour(self.data, texts, self.config.permutations, self.seed) | utility(results)
        if self.meter is not None or self.places is not None:
            announce("recognition")
            results |= self.places.measure(lm) if self.places is not None else {}
            results |= self.meter.full(lm) if self.meter is not None else {}
        announce("generic text")
        results |= self.collapse(lm) | free_text(lm, self.generic, self.reader)
        results["collapse/entropy"] = answer_entropy(texts["retain"])
        return Measurement(results, texts, kept)

    def deep(self, lm: PreTrainedModel) -> dict[str, float]:
        """How deep forgetting goes: ``forget/depth_score`` and, per layer, ``forget/depth_*`` and ``forget/lens_rank``; empty without
        ``original``. Without a gold model, only questions in which an unknown name can stand for the target's are patched."""
        if self.original is None:
            return {}
        rows = [row for row in self.data.evaluation["forget"] if row.mentions]
        tokens = self.reader.tokens(rows)
        found = lens_ranks(lm, tokens, self.reader)
        if self.gold_model is not None:
            return found | measure_depth(self.original(), lm, tokens, self.reader, gold=self.gold_model()).results()
        strangers = [row.mentions[0] for row in self.data.streams["unknown"] if row.mentions]
        swapped = {row.row_id: row for row in matched_rows(rows, strangers, 1, self.seed)}
        rows = [row for row in rows if row.row_id in swapped]
        others = self.reader.tokens([swapped[row.row_id] for row in rows])
        return found | measure_depth(self.original(), lm, self.reader.tokens(rows), self.reader, swapped=others).results()

    def collapse(self, lm: PreTrainedModel) -> dict[str, float]:
        """The part of the collapse metrics that is cheap enough to follow during training."""
        return generic_text(lm, self.generic, self.reader, self.reference, self.layer)

    def measure_base(
        self, lm: PreTrainedModel, path: Path | None = None, announce: Callable[[str], None] = lambda stage: None
    ) -> Measurement:
        """Measure the original model, or read what an earlier run with the same model and data measured.

        Args:
            lm: the model before any training.
            path: JSON file in the cache, named by a fingerprint of everything that changes the result.
            announce: called with the name of each stage before it starts.

        Raises:
            CacheError: the file is damaged.
        """

        def measure() -> Measurement:
            found = self.measure(lm, announce)
            announce("calibration")
            found.results.update(self.calibration(lm))
            return found

        self.base = _once(measure, path)
        return self.base

    def calibration(self, lm: PreTrainedModel) -> dict[str, float]:
        """What only the frozen model is asked for, see ``LatentMeter.frozen``; empty without an SAE."""
        return self.meter.frozen(lm, self.selection) if self.meter is not None and self.selection is not None else {}

    def measure_gold(
        self, load: Callable[[], PreTrainedModel], path: Path | None = None, announce: Callable[[str], None] = lambda stage: None
    ) -> Measurement:
        """Measure the model that never saw the forget entities, or read what an earlier run measured.

        Args:
            load: gives the model; not called when ``path`` is there.
            path: JSON file in the cache, named by a fingerprint of everything that changes the result.
            announce: called with the name of each stage before it starts.

        Raises:
            CacheError: the file is damaged.
        """
        self.gold = _once(lambda: self.measure(load(), announce), path)
        return self.gold

    def final(self, measured: Measurement) -> Results:
        """Results of a model: the measurement, what only the base knows, and, where there is a base, the verdict on collapse."""
        beside = against_gold(measured.rows, self.gold.rows) if self.gold is not None else {}
        if self.base is None:
            return {**measured.results, **beside}
        base = self.base.results
        judged = verdict(measured.results, base, self.config)
        calibration: Results = {key: value for key, value in base.items() if key not in measured.results}
        kept = ("generic/perplexity", "forget/accuracy", "forget/accuracy_paraphrased", "retain/accuracy", "retain/accuracy_unseen")
        return {
            **calibration,
            **measured.results,
            **beside,
            **{f"{key}_base": base[key] for key in kept if key in base},
            "collapse/flag": float(judged.flag),
            "collapse/reason": judged.reason,
        }


def _once(measure: Callable[[], Measurement], path: Path | None) -> Measurement:
    """What ``measure`` finds, kept at ``path``; processes that want it at once measure once."""
    if path is None:
        return measure()

    def write(found: Measurement) -> None:
        text = json.dumps(asdict(found))
        write_atomic(path, f"{_checksum(text)}\n{text}")

    return kept_or_made(path, lambda: _kept(path), measure, write)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path) -> Measurement:
    """What was measured before.

    Raises:
        CacheError: the file is damaged.
    """
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        if rest and first != _checksum(rest):
            raise ValueError("its checksum is another")
        found = json.loads(rest or first)  # written before there were checksums: one line
        return Measurement(found["results"], found["texts"], found["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path} is damaged ({error}); delete it and run again.") from error
