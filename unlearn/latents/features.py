"""How often and how strongly SAE latents fire on the rows to forget and on the rows to keep, and who is chosen by that.

Token by token, beginning-of-sequence and padding left out, on the original model. SAE-based unlearning methods share these numbers and
differ in the rule that chooses: a ceiling on the retain rows (Farrell et al., arXiv 2410.19278, as coded in SAEBench), a percentile of the
ratio of squared activations (Muhamed et al., arXiv 2504.08192), or a difference of counts (Ashuach et al., arXiv 2508.13650).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unlearn.errors import DataError
from unlearn.models.capture import capture
from unlearn.models.decoder import evaluating
from unlearn.models.intervene import content_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.models.sae import FrozenSAE
    from unlearn.types import TokenBatch

FLOOR = 1e-21
"""Added to the importance on retain rows before dividing by it."""


@dataclass(frozen=True)
class FeatureStats:
    """Sums over ``tokens`` tokens, per latent, fp64, shape [F]: on how many it fires, its activation, its squared activation."""

    tokens: int
    count_F: Tensor
    sum_F: Tensor
    square_F: Tensor

    @property
    def rate_F(self) -> Tensor:
        """Fraction of tokens on which a latent fires, in [0, 1]."""
        return self.count_F / self.tokens

    @property
    def mean_F(self) -> Tensor:
        """Mean activation."""
        return self.sum_F / self.tokens

    @property
    def mean_square_F(self) -> Tensor:
        """Mean squared activation, >= 0."""
        return self.square_F / self.tokens

    def on(self, tokens: int) -> FeatureStats:
        """The sums that as many tokens of the same kind would give.

        >>> one = torch.ones(1)
        >>> FeatureStats(2, one, 3 * one, 5 * one).on(4).sum_F
        tensor([6.])
        """
        k = tokens / self.tokens
        return FeatureStats(tokens, self.count_F * k, self.sum_F * k, self.square_F * k)


def stats_of(acts_NF: Tensor) -> FeatureStats:
    """Sums over the activations of N tokens; a latent fires where it is above 0.

    >>> stats_of(torch.tensor([[0.0, 2.0], [1.0, 3.0]])).count_F.tolist()
    [1.0, 2.0]
    """
    acts_NF = acts_NF.double()
    return FeatureStats(len(acts_NF), (acts_NF > 0).double().sum(0), acts_NF.sum(0), acts_NF.square().sum(0))


def activations(
    lm: PreTrainedModel, sae: FrozenSAE, batches: Iterable[TokenBatch], layer: int, bos_id: int | None, latents_S: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """For every batch, activations [B, T, F] (or [B, T, S] for ``latents_S``), and where a token is content, [B, T]; no gradients.

    Args:
        lm: the language model.
        sae: the SAE.
        batches: rows.
        layer: block whose output is encoded (-1: the input of block 0).
        bos_id: token that is never content.
        latents_S: indices; None for every latent.
    """
    with evaluating(lm):
        for batch in batches:
            content_BT = content_tokens(batch.input_ids_BT, batch.attention_mask_BT, bos_id)
            yield sae.encode(capture(lm, batch, layer), latents_S), content_BT


def measure_features(lm: PreTrainedModel, sae: FrozenSAE, batches: Iterable[TokenBatch], layer: int, bos_id: int | None) -> FeatureStats:
    """Statistics of every latent over the content tokens of ``batches``.

    Raises:
        DataError: there is no content token.
    """
    parts = [stats_of(acts_BTF[content_BT]) for acts_BTF, content_BT in activations(lm, sae, batches, layer, bos_id)]
    tokens = sum(part.tokens for part in parts)
    if not tokens:
        raise DataError("The forget and retain streams must hold tokens to measure latents on; found none.")
    count_F, sum_F, square_F = (torch.stack([getattr(p, name) for p in parts]).sum(0) for name in ("count_F", "sum_F", "square_F"))
    return FeatureStats(tokens, count_F, sum_F, square_F)


def below_ceiling(forget_F: Tensor, retain_F: Tensor, ceiling: float, n: int | None = None) -> Tensor:
    """The ``n`` latents that fire most on forget rows among those whose retain score is below ``ceiling``, best first, shape [<= n].

    Latents that score 0 on forget rows are never chosen (SAEBench's rule for Farrell et al.).

    >>> below_ceiling(torch.tensor([0.5, 0.9, 0.0, 0.7]), torch.tensor([0.0, 0.2, 0.0, 0.01]), ceiling=0.1)
    tensor([3, 0])
    """
    score_F = torch.where(retain_F >= ceiling, torch.zeros_like(forget_F), forget_F)
    order = score_F.argsort(descending=True, stable=True)
    return order[: int((score_F > 0).sum())][:n]


def by_ratio(forget_F: Tensor, retain_F: Tensor, percentile: float, n: int | None = None) -> Tensor:
    """The ``n`` latents most important on forget rows among those whose forget/retain ratio reaches ``percentile``, best first.

    Latents of no importance on forget rows are never chosen (DSG's rule, with its other two percentiles left wide open).

    Args:
        forget_F: importance on forget rows, >= 0.
        retain_F: importance on retain rows, >= 0.
        percentile: percentile of the ratio over all latents, in [0, 100].
        n: most latents to choose; None for all.

    >>> by_ratio(torch.tensor([4.0, 9.0, 1.0, 0.0]), torch.tensor([1.0, 9.0, 0.1, 0.0]), percentile=50)
    tensor([0, 2])
    """
    ratio_F = forget_F / (retain_F + FLOOR)
    chosen_F = (ratio_F >= torch.quantile(ratio_F, percentile / 100)) & (forget_F > 0)
    order = torch.where(chosen_F, forget_F, torch.zeros_like(forget_F)).argsort(descending=True, stable=True)
    return order[: int(chosen_F.sum())][:n]


def by_count(forget: FeatureStats, retain: FeatureStats, n: int, min_ratio: float = 0.0) -> Tensor:
    """CRISP's rule: the 10 n largest differences of counts, of these the first ``n`` with ``sum_forget / (sum_retain + 1) >= min_ratio``.

    Give statistics over equally many tokens (``FeatureStats.on``).

    >>> one = torch.ones(3)
    >>> by_count(FeatureStats(9, torch.tensor([9.0, 5.0, 7.0]), 8 * one, one), FeatureStats(9, 4 * one, one, one), n=2).tolist()
    [0, 2]
    """
    order = (forget.count_F - retain.count_F).argsort(descending=True, stable=True)[: 10 * n]
    ratio_F = forget.sum_F / (retain.sum_F + 1)
    return order[ratio_F[order] >= min_ratio][:n]
