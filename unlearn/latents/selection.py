"""Which SAE latents tell known from unknown entities.

Ferrando et al., "Do I Know This Entity?" (arXiv 2411.14257), section 3: for each latent the fraction of known entities on whose last
token it fires, minus the fraction of unknown ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unlearn.config.schema import LatentsConfig
from unlearn.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.latents.banks import Banks
    from unlearn.models.sae import FrozenSAE


@dataclass(frozen=True)
class Separation:
    """Firing fractions of every latent, in [0, 1], shape [F]."""

    fires_known_F: Tensor
    fires_unknown_F: Tensor

    @property
    def known_F(self) -> Tensor:
        """Known-entity score, in [-1, 1]."""
        return self.fires_known_F - self.fires_unknown_F

    @property
    def unknown_F(self) -> Tensor:
        """Unknown-entity score, in [-1, 1]."""
        return self.fires_unknown_F - self.fires_known_F


@dataclass(frozen=True)
class Selection:
    """Chosen latents (long, shape [S], ascending, without repetition) and the scores they were chosen by."""

    latents_S: Tensor
    separation: Separation

    @property
    def best_known(self) -> float:
        """Largest known-entity score."""
        return float(self.separation.known_F.max())

    @property
    def best_unknown(self) -> float:
        """Largest unknown-entity score."""
        return float(self.separation.unknown_F.max())


def separation(known_NF: Tensor, unknown_MF: Tensor, threshold: float = 1e-6) -> Separation:
    """Firing fractions of every latent on known and unknown entities.

    Args:
        known_NF: SAE activations on known entities, shape [N, F].
        unknown_MF: SAE activations on unknown entities, shape [M, F].
        threshold: a latent above it fires.

    >>> scores = separation(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> scores.known_F.tolist(), scores.unknown_F.tolist()
    ([0.5, -0.5], [-0.5, 0.5])
    """
    return Separation((known_NF > threshold).float().mean(0), (unknown_MF > threshold).float().mean(0))


def choose(scores: Separation, config: LatentsConfig, seed: int = 0) -> Tensor:
    """Indices of the chosen latents, ascending, shape [S].

    ``separation`` takes the ``top_k`` best of each side, ``random`` as many at random (the control), ``all`` every latent that the SAE has.

    Raises:
        ConfigError: more latents are asked for than the SAE has.
    """
    total = scores.known_F.numel()
    if config.select == "all":
        return torch.arange(total)
    if 2 * config.top_k > total:
        raise ConfigError(f"latents.top_k must be <= {total // 2} for an SAE with {total} latents; found {config.top_k}.")
    if config.select == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(total, generator=generator)[: 2 * config.top_k].sort().values
    sides = torch.cat([scores.known_F.topk(config.top_k).indices, scores.unknown_F.topk(config.top_k).indices])
    return sides.unique()


@torch.no_grad()
def select_latents(sae: FrozenSAE, banks: Banks, config: LatentsConfig, seed: int = 0) -> Selection:
    """Score every latent on the banks' entity tokens and choose."""
    device = next(sae.parameters()).device
    known, unknown = (sae.encode(bank["entity_end"].to(device)).cpu() for bank in (banks.known, banks.unknown))
    scores = separation(known, unknown, config.threshold)
    return Selection(choose(scores, config, seed), scores)
