"""Recognition: how far the target's activation is from known and from unknown entities, on held-out names and templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from unlearn.data.tokenize import batches
from unlearn.errors import DataError
from unlearn.evaluation.shard import spread
from unlearn.functional.distance import standardised_distance
from unlearn.functional.statistics import bootstrap_interval, c2st_auc, c2st_null, fit_probe, mmd_permutation
from unlearn.latents.banks import collect
from unlearn.models.decoder import device_of
from unlearn.types import NO_ENTITY

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.config.schema import EvaluationConfig
    from unlearn.data.tokenize import TokenRow
    from unlearn.latents.banks import Banks
    from unlearn.latents.selection import Selection
    from unlearn.models.sae import FrozenSAE

GROUPS = ("forget", "known", "unknown")


@dataclass(frozen=True)
class LatentRows:
    """The rows of one group that name an entity, and the entity of each."""

    tokens: Sequence[TokenRow]
    entities: np.ndarray

    @classmethod
    def of(cls, tokens: Sequence[TokenRow], entities: Sequence[str]) -> LatentRows:
        """Keep the rows that have an entity position."""
        keep = [i for i, row in enumerate(tokens) if row.entity_end > NO_ENTITY]
        return cls([tokens[i] for i in keep], np.array([entities[i] for i in keep]))


class LatentMeter:
    """Measures the current model against the frozen one.

    Result keys (all at the last entity token, on what the SAE reads there, held-out names and templates):

    =========================== =====================================================================================
    latent/distance_to_known    mean squared standardised distance of the target to the known bank's mean, selected latents
    latent/distance_to_unknown  the same to the unknown bank's mean
    latent/p_unknown            mean P(unknown | target) of a logistic probe fitted on the frozen model's banks
    latent/c2st_auc             classifier two-sample test, target against unseen unknown entities, 0.5 = indistinguishable
    latent/mmd, mmd_p_value     squared maximum mean discrepancy to the same and its permutation p-value over entities
    =========================== =====================================================================================
    """

    def __init__(
        self,
        groups: Mapping[str, LatentRows],
        banks: Banks,
        selection: Selection,
        sae: FrozenSAE,
        config: EvaluationConfig,
        pad_id: int,
        seed: int,
    ) -> None:
        """Fit the probe and the scales on the frozen model's banks.

        Args:
            groups: rows of ``forget``, ``known`` and ``unknown``, none of them used in training.
            banks: activations of the training anchors under the frozen model.
            selection: chosen latents.
            sae: the frozen SAE.
            config: evaluation settings.
            pad_id: padding token.
            seed: seed of folds and permutations.
        """
        self.groups, self.sae, self.config, self.pad_id, self.seed = groups, sae, config, pad_id, seed
        self.layer = banks.layer
        self.latents_S = selection.latents_S
        known, unknown = banks.known["entity_end"], banks.unknown["entity_end"]
        known_NS, unknown_NS = self.project(known), self.project(unknown)
        self.scale_S = torch.cat([known_NS, unknown_NS]).std(0).clamp(min=1e-3)
        self.means = {"known": known_NS.mean(0), "unknown": unknown_NS.mean(0)}
        labels = np.concatenate([np.zeros(len(known)), np.ones(len(unknown))])
        self.probe = fit_probe(torch.cat([known, unknown]).numpy(), labels)

    @torch.no_grad()
    def project(self, hidden_ND: Tensor) -> Tensor:
        """Pre-activations of the selected latents, on the CPU, [N, S]."""
        device = next(self.sae.parameters()).device
        return self.sae.preactivations(hidden_ND.to(device), self.latents_S.to(device)).float().cpu()

    def activations(self, lm: PreTrainedModel, group: str) -> Tensor:
        """Activations of a group's entity tokens under ``lm``, [N, D], in the order of its rows."""
        return self.read(lm, self.groups[group].tokens)

    def read(self, lm: PreTrainedModel, rows: Sequence[TokenRow]) -> Tensor:
        """Activations of the rows' entity tokens under ``lm``, [N, D], in their order; shared out over the processes.

        Raises:
            DataError: there are no rows.
        """
        if not rows:
            raise DataError("Recognition must be measured on rows that name an entity; found none.")
        device = device_of(lm)

        def work(mine: Sequence[TokenRow]) -> list[np.ndarray]:
            out: list[np.ndarray] = [np.empty(0)] * len(mine)
            for index, cpu_batch in batches(mine, self.config.batch_size, self.pad_id):
                batch = type(cpu_batch)(*(t.to(device) for t in cpu_batch))
                for place, row in zip(index, collect(lm, [batch], self.sae, "entity_end").numpy(), strict=True):
                    out[place] = row
            return out

        return torch.from_numpy(np.stack(spread(rows, work)))

    def distance(self, hidden_ND: Tensor, side: str) -> np.ndarray:
        """Squared standardised distance of each activation to the mean of ``side``, shape [N]."""
        distance: np.ndarray = standardised_distance(self.project(hidden_ND), self.means[side], self.scale_S).numpy()
        return distance

    def p_unknown(self, hidden_ND: Tensor) -> np.ndarray:
        """P(unknown) of the probe, shape [N], in [0, 1]."""
        probabilities: np.ndarray = self.probe.predict_proba(hidden_ND.numpy())[:, 1]
        return probabilities

    def two_samples(self, target_ND: Tensor, unknown_MD: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(activations, label 1 = target, entity of each row) of the two samples laid end to end."""
        x = torch.cat([target_ND, unknown_MD]).numpy()
        y = np.concatenate([np.ones(len(target_ND)), np.zeros(len(unknown_MD))])
        return x, y, np.concatenate([self.groups["forget"].entities, self.groups["unknown"].entities])

    def quick(self, lm: PreTrainedModel) -> dict[str, float]:
        """What is followed during training."""
        target, unknown = self.activations(lm, "forget"), self.activations(lm, "unknown")
        return self._quick(target, unknown)

    def _quick(self, target: Tensor, unknown: Tensor) -> dict[str, float]:
        x, y, groups = self.two_samples(target, unknown)
        return {
            "latent/distance_to_known": float(self.distance(target, "known").mean()),
            "latent/distance_to_unknown": float(self.distance(target, "unknown").mean()),
            "latent/p_unknown": float(self.p_unknown(target).mean()),
            "latent/c2st_auc": c2st_auc(x, y, groups, self.seed),
        }

    def full(self, lm: PreTrainedModel) -> dict[str, float]:
        """``quick`` and the interval of P(unknown), and the MMD test."""
        target, unknown = self.activations(lm, "forget"), self.activations(lm, "unknown")
        results = self._quick(target, unknown)
        entities = self.groups["forget"].entities
        if self.config.bootstrap:
            low, high = bootstrap_interval(self.p_unknown(target), self.config.bootstrap, self.seed, groups=entities)
            results |= {"latent/p_unknown/ci_low": low, "latent/p_unknown/ci_high": high}
        scale = self.scale_S.numpy()
        statistic, p_value = mmd_permutation(
            self.project(target).numpy() / scale,
            self.project(unknown).numpy() / scale,
            entities,
            self.groups["unknown"].entities,
            n=self.config.permutations,
            seed=self.seed,
            standardise=False,
        )
        return results | {"latent/mmd": statistic, "latent/mmd_p_value": p_value}

    def frozen(self, lm: PreTrainedModel, selection: Selection) -> dict[str, float]:
        """What only the frozen model is asked for: calibration of everything above.

        ``latent/probe_auc`` (held-out known against held-out unknown), ``latent/c2st_null_low`` and ``_high`` (95 % interval of the C2ST
        between two groups of unknown entities of the same sizes), ``latent/null_distance_low`` and ``_high`` (5-95 % of the distance of
        held-out unknown entities to the unknown mean), ``latent/best_known_separation`` and ``latent/best_unknown_separation``.
        """
        from sklearn.metrics import roc_auc_score

        known, unknown = self.activations(lm, "known"), self.activations(lm, "unknown")
        truth = np.concatenate([np.zeros(len(known)), np.ones(len(unknown))])
        results = {
            "latent/probe_auc": float(roc_auc_score(truth, self.p_unknown(torch.cat([known, unknown])))),
            "latent/p_unknown_of_known": float(self.p_unknown(known).mean()),
            "latent/p_unknown_of_unknown": float(self.p_unknown(unknown).mean()),
            "latent/best_known_separation": selection.best_known,
            "latent/best_unknown_separation": selection.best_unknown,
        }
        for side, hidden in (("null", unknown), ("known", known)):
            low, high = np.quantile(self.distance(hidden, "unknown"), [0.05, 0.95])
            results |= {f"latent/{side}_distance_low": float(low), f"latent/{side}_distance_high": float(high)}
        if self.config.null_draws:
            entities = self.groups["unknown"].entities
            n_target = len(set(self.groups["forget"].entities))
            n_rest = len(set(entities)) - n_target
            null = c2st_null(unknown.numpy(), entities, n_target, n_rest, draws=self.config.null_draws, seed=self.seed)
            low, high = np.quantile(null, [0.025, 0.975])
            results |= {"latent/c2st_null_low": float(low), "latent/c2st_null_high": float(high)}
        return results
