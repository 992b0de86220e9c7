"""Recognition at many places: blocks that were not trained on, the answer position, SAE latents, a second SAE that no loss has seen.

A method that hides the target where the loss looks, and there alone, shows here. Every number compares the target with unknown entities
that were never trained on, in sentences that were never trained on, as the model has them now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from unlearn.data.tokenize import batches
from unlearn.errors import CacheError
from unlearn.evaluation.shard import kept_or_made, spread
from unlearn.functional.indistinguishable import (
    Sample,
    auc_interval,
    ks_findings,
    ks_interval,
    mahalanobis_percentiles,
    mean_interval,
    mmd_interval,
)
from unlearn.functional.statistics import bootstrap_interval, c2st_auc, fit_probe, mmd_permutation
from unlearn.latents.banks import POSITIONS, position_index
from unlearn.models.capture import capture_layers
from unlearn.models.decoder import device_of
from unlearn.tracking.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.config.schema import EvaluationConfig
    from unlearn.data.tokenize import TokenRow
    from unlearn.evaluation.latent import LatentRows
    from unlearn.models.sae import FrozenSAE

Read = dict[tuple[int, str], np.ndarray]
"""Activations [N, D] by (block, position)."""

REFITS = 50
"""One refit of the two-sample classifier for so many bootstrap resamples of the cheaper tests."""


@dataclass(frozen=True)
class Place:
    """Where and in which coordinates: ``suffix`` ends the result keys, ``project`` turns [N, D] into [N, S] (None: as it is)."""

    layer: int
    position: str
    suffix: str
    project: Callable[[np.ndarray], np.ndarray] | None = None

    def of(self, read: Read) -> np.ndarray:
        """Coordinates at this place."""
        hidden_ND = read[self.layer, self.position]
        return hidden_ND if self.project is None else self.project(hidden_ND)


def _latents(sae: FrozenSAE) -> Callable[[np.ndarray], np.ndarray]:
    @torch.no_grad()
    def project(hidden_ND: np.ndarray) -> np.ndarray:
        acts: np.ndarray = sae.encode(torch.from_numpy(hidden_ND).to(sae.device)).cpu().numpy()
        return acts

    return project


def places(hook: int, n_blocks: int, sae: FrozenSAE, heldout: FrozenSAE | None) -> list[Place]:
    """The hooked block, the middle and the last block above it, at the entity; hooked and last block at the answer; SAE latents.

    Suffixes: none (hooked block, entity), ``@layer<n>``, ``@answer``, ``@layer<n>@answer``, ``@sae``, ``@heldout_sae``.
    """
    last = n_blocks - 1
    above = [layer for layer in dict.fromkeys(((hook + last + 1) // 2, last)) if layer != hook]
    found = [Place(hook, "entity_end", "")]
    found += [Place(layer, "entity_end", f"@layer{layer}") for layer in above]
    found += [Place(hook, "answer_start", "@answer")]
    found += [Place(layer, "answer_start", f"@layer{layer}@answer") for layer in above[-1:]]
    if sae.layers == (hook,):
        found.append(Place(hook, "entity_end", "@sae", _latents(sae)))
    if heldout is not None:
        found.append(Place(heldout.layer, "entity_end", "@heldout_sae", _latents(heldout)))
    return found


def read_places(lm: PreTrainedModel, rows: Sequence[TokenRow], where: Sequence[Place], batch_size: int, pad_id: int) -> Read:
    """Activations of every row at every (block, position) of ``where``, one pass per batch, shared out over the processes."""
    layers = sorted({place.layer for place in where})
    device = device_of(lm)

    @torch.no_grad()
    def work(mine: Sequence[TokenRow]) -> list[np.ndarray]:
        out: list[np.ndarray] = [np.empty(0)] * len(mine)
        for index, cpu_batch in batches(mine, batch_size, pad_id):
            batch = type(cpu_batch)(*(t.to(device) for t in cpu_batch))
            hidden = capture_layers(lm, batch, layers)
            at = [position_index(batch, position).clamp(min=0) for position in POSITIONS]
            rows_B = torch.arange(len(index), device=device)
            stacked = torch.stack([hidden[layer][rows_B, index_B] for layer in layers for index_B in at], dim=1).float().cpu().numpy()
            for row, values in zip(index, stacked, strict=True):
                out[row] = values
        return out

    whole = np.stack(spread(rows, work))
    keys = [(layer, position) for layer in layers for position in POSITIONS]
    return {key: whole[:, i] for i, key in enumerate(keys)}


class PlaceMeter:
    """Tests the target against unknown entities at every place; probes are fitted on the frozen model's held-out known and unknown ones."""

    def __init__(self, groups: Mapping[str, LatentRows], where: Sequence[Place], config: EvaluationConfig, pad_id: int, seed: int) -> None:
        """Keep what is needed; ``remember`` has to be called with the frozen model before ``measure``.

        Args:
            groups: rows of ``forget``, ``known`` and ``unknown``, none of them used in training.
            where: from ``places``.
            config: evaluation settings.
            pad_id: padding token.
            seed: seed of folds, permutations and resamples.
        """
        self.groups, self.where, self.config, self.pad_id, self.seed = groups, where, config, pad_id, seed
        self.probes: dict[str, object] = {}

    def read(self, lm: PreTrainedModel, group: str) -> Read:
        """Activations of one group at every place."""
        return read_places(lm, self.groups[group].tokens, self.where, self.config.batch_size, self.pad_id)

    def remember(self, lm: PreTrainedModel, path: Path | None = None) -> None:
        """Fit the probes on the frozen model; what it reads is kept at ``path``.

        Raises:
            CacheError: the file is damaged.
        """
        flat = self._flat(lm) if path is None else self._flat_kept(lm, path)
        for place in self.where:
            sides = [place.of({(place.layer, place.position): flat[f"{g}.{place.layer}.{place.position}"]}) for g in ("known", "unknown")]
            labels = np.repeat([0, 1], [len(side) for side in sides])
            self.probes[place.suffix] = fit_probe(np.concatenate(sides), labels)

    def _flat_kept(self, lm: PreTrainedModel, path: Path) -> dict[str, np.ndarray]:
        """``_flat``, read from ``path`` where it is there, kept there otherwise."""

        def read() -> dict[str, np.ndarray]:
            try:
                return {name: values.numpy() for name, values in load_tensors(path).items()}
            except (ValueError, OSError) as error:
                raise CacheError(f"{path} is damaged ({error}); delete it and run again.") from error

        def write(flat: dict[str, np.ndarray]) -> None:
            save_tensors(path, {name: torch.from_numpy(values) for name, values in flat.items()})

        return kept_or_made(path, read, lambda: self._flat(lm), write)

    def _flat(self, lm: PreTrainedModel) -> dict[str, np.ndarray]:
        """What is read of known and unknown entities, by group, block and position."""
        return {f"{group}.{layer}.{position}": np.ascontiguousarray(values) for group in ("known", "unknown")
                for (layer, position), values in self.read(lm, group).items()}  # fmt: skip

    def measure(self, lm: PreTrainedModel) -> dict[str, float]:
        """Every test at every place.

        ``latent/c2st_auc``, ``latent/mmd`` with ``latent/mmd_p_value``, ``latent/ks_share`` (share of features that differ, false discovery
        rate 5 %), ``latent/mahalanobis`` (mean percentile of the targets among unknown entities, 0.5 if alike), ``latent/p_unknown``; each
        with ``/ci_low`` and ``/ci_high`` and the suffix of its place.

        The interval of ``latent/p_unknown`` is about these targets and no test against other unknown entities: most of those lie near 1 and
        a few far from it, so that ten of them seldom hold the mean of all (experiments/measurement).
        """
        target, unknown = self.read(lm, "forget"), self.read(lm, "unknown")
        found: dict[str, float] = {}
        for place in self.where:
            a = Sample(place.of(target), self.groups["forget"].entities)
            b = Sample(place.of(unknown), self.groups["unknown"].entities)
            found |= {f"latent/{name.replace('|', place.suffix)}": value for name, value in self._tests(a, b, place).items()}
        return found

    def _tests(self, a: Sample, b: Sample, place: Place) -> dict[str, float]:
        c, seed = self.config, self.seed
        x, y = np.concatenate([a.x_NS, b.x_NS]), np.repeat([1, 0], [len(a.x_NS), len(b.x_NS)])
        mmd, p_value = mmd_permutation(a.x_NS, b.x_NS, a.groups_N, b.groups_N, n=c.permutations, seed=seed)
        share, _ = ks_findings(a, b)
        ranks = mahalanobis_percentiles(a, b, seed)
        p_unknown: np.ndarray = self.probes[place.suffix].predict_proba(a.x_NS)[:, 1]  # type: ignore[attr-defined]
        found = {
            "c2st_auc|": c2st_auc(x, y, np.concatenate([a.groups_N, b.groups_N]), seed),
            "mmd|": mmd,
            "mmd_p_value|": p_value,
            "ks_share|": share,
            "mahalanobis|": float(ranks.mean()),
            "p_unknown|": float(p_unknown.mean()),
        }
        if c.bootstrap:
            intervals = {
                "c2st_auc|": auc_interval(a, b, max(2, c.bootstrap // REFITS), seed),
                "mmd|": mmd_interval(a, b, c.bootstrap, seed),
                "ks_share|": ks_interval(a, b, max(2, c.bootstrap // REFITS), seed),
                "mahalanobis|": mean_interval(ranks),
                "p_unknown|": bootstrap_interval(p_unknown, c.bootstrap, seed, groups=a.groups_N),
            }
            found |= {
                f"{name}/ci_{end}": value for name, pair in intervals.items() for end, value in zip(("low", "high"), pair, strict=True)
            }
        if not place.suffix:  # unlearn.evaluation.latent measures it here, in the coordinates of the selected latents
            found = {name: value for name, value in found.items() if not name.startswith("mmd")}
        return found
