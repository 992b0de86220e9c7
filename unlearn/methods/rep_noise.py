"""Representation noising: forget activations become noise at every layer, forget answers become unlikely at every layer.

Paper: Rosati et al., "Representation Noising: A Defence Mechanism Against Harmful Finetuning" (arXiv 2405.14577), section 3; the form is
that of the authors' code.

    L = retain + beta * mean_l MMD2(mlp_l(forget), N(0, I)) - alpha * log(1 + mean_l CE_l(forget))

mlp_l is the output of the MLP of block l, before it is added to the residual stream: that is what the authors' code hooks, and
noise there leaves the stream a scale to which N(0, I) can be compared. CE_l is the cross-entropy of the forget answers read from the
output of block l through the final norm and the output head (logit lens); the last one is the model's own. The logarithm slows the ascent
down, it does not bound it. A row is one sample for the MMD, its answer tokens end to end; five kernels ``exp(-|x - y|^2 / b)``, b from a
quarter to four times the mean squared distance within the batch. Every row has noise of its own, drawn anew at every step.

Deviations. The authors mask the tokens in which a harmful and a harmless text of the same question differ; unlearning has no pairs,
and the answer tokens take their place. Their mean over l also counts the input embeddings, which training blocks cannot change, norms
the last hidden state a second time, and counts the model's own loss on top of it; here l runs over the blocks, each once. The k-th answer
token of a row is compared with the k-th of another, wherever in the text they stand.
The retain half is the KL tether unless ``retain: nll`` asks for the paper's cross-entropy: the authors' harmless texts are new to the model
and have to be learnt, retain rows are what it knows, and learning them again works against the ascent where answers are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unlearn.config.checks import check, one_of
from unlearn.errors import ModelError
from unlearn.functional.mmd import mmd2
from unlearn.functional.ranks import SharedRows, largest, mean
from unlearn.functional.tokens import answer_positions, token_nll, upcast
from unlearn.methods.base import MethodContext
from unlearn.methods.retain import RetainConfig, RetainMethod
from unlearn.methods.rmu import TOKENS, token_mask
from unlearn.models.decoder import blocks_of, decoder_of, head
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

KERNELS = tuple(2.0**i for i in range(-2, 3))
"""Bandwidths, in units of the mean squared distance between samples."""
MLPS = ("mlp", "feed_forward", "block_sparse_moe")
NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


@dataclass(frozen=True, kw_only=True)
class RepNoiseConfig(RetainConfig):
    """Weights of the noise and of the ascent."""

    retain: str = "kl"
    """kl (from the original model's predictions on the retain answers), nll (cross-entropy on them: the paper's) or none"""
    noise_weight: float = 0.001
    """weight of the distance to noise (beta), >= 0"""
    ascent_weight: float = 1.0
    """weight of the ascent through all layers (alpha), >= 0"""
    tokens: str = "answers"
    """tokens whose activations become noise: answers, predictors (those that predict answer tokens) or all (real tokens after the first)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.noise_weight >= 0, "method.noise_weight", ">= 0", self.noise_weight)
        check(self.ascent_weight >= 0, "method.ascent_weight", ">= 0", self.ascent_weight)
        one_of(self.tokens, TOKENS, "method.tokens")


def noise_distance(x_NS: Tensor, noise_NS: Tensor) -> Tensor:
    """Squared MMD (biased) between activations and noise, summed over five kernels; a scalar in [0, 10], fp32 or wider.

    ``mean [k(x, x') + k(y, y') - 2 k(x, y)]`` with ``k(a, b) = sum_i exp(-|a - b|^2 / b_i)``; the mean squared distance over all pairs of
    different samples, which sets ``b_i``, has no gradient.

    >>> noise_distance(torch.zeros(2, 3), torch.zeros(2, 3)).item()
    0.0
    >>> round(noise_distance(torch.zeros(2, 1), torch.ones(2, 1)).item(), 4)  # mean squared distance 2/3
    7.1299
    """
    both = torch.cat([upcast(x_NS), upcast(noise_NS)]).detach()
    n, width = both.shape
    centred = both - both.mean(0)
    mean_squared = (2 * n * centred.square().sum() / (n * n - n)).clamp(min=torch.finfo(both.dtype).tiny)
    return mmd2(upcast(x_NS), upcast(noise_NS), [scale * mean_squared.item() / (2 * width) for scale in KERNELS])


def ascent_loss(nll_L: Tensor) -> Tensor:
    """``-log(1 + mean_l CE_l)``, a scalar <= 0.

    >>> ascent_loss(torch.tensor([0.0, 2.0])).item() == -torch.tensor(2.0).log().item()
    True
    """
    return -torch.log1p(nll_L.mean())


def end_to_end(hidden_BTD: Tensor, mask_BT: Tensor, most: int = 1) -> Tensor:
    """Masked tokens of each row laid end to end: [B, K * D], zero after the last; K is the largest number in a row, or
    ``most`` where that is more.

    >>> end_to_end(torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]]), torch.tensor([[False, True, True], [True, False, False]]))
    tensor([[2., 3.],
            [4., 0.]])
    """
    row_N, _ = mask_BT.nonzero(as_tuple=True)
    place_N = (mask_BT.cumsum(1) - 1)[mask_BT]
    packed_BKD = hidden_BTD.new_zeros(len(mask_BT), max(1, most, int(mask_BT.sum(1).max())), hidden_BTD.shape[-1])
    return packed_BKD.index_put((row_N, place_N), hidden_BTD[mask_BT]).flatten(1)


def _found(module: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    """The first of the attributes ``names`` that is a module.

    Raises:
        ModelError: it has none of them.
    """
    for name in names:
        part = getattr(module, name, None)
        if isinstance(part, nn.Module):
            return part
    raise ModelError(f"The language model must have {what} called {', '.join(names)}; found none in {type(module).__name__}.")


@contextmanager
def mlp_outputs(lm: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Fill the yielded dict with the MLP output [B, T, D] of every block while the model runs inside the context.

    Raises:
        ModelError: a block has no MLP in a place we know.
    """
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        return after

    handles = []
    try:
        for layer, block in enumerate(blocks_of(lm)):
            handles.append(_found(block, MLPS, "an MLP in every block").register_forward_hook(keep(layer)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


class RepNoise(RetainMethod):
    """Noise in the MLPs, ascent at every layer, and a retain term."""

    name = "rep_noise"
    family = "representation"
    summary = "turn the target's activations into noise and raise its loss at every layer, keep the retain answers"
    paper = "https://arxiv.org/abs/2405.14577"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs"})
    reference_streams = ("retain",)
    search = {
        "method.noise_weight": {"low": 0.0001, "high": 1.0, "log": True},
        "method.ascent_weight": {"low": 0.03, "high": 3.0, "log": True},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = RepNoiseConfig
    config: RepNoiseConfig

    def __init__(self, config: RepNoiseConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.step = 0

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Another step has other noise."""
        self.step = step

    def noise(self, batch: TokenBatch, layer: int, width: int) -> Tensor:
        """Noise of every row, [B, width]; it depends on seed, row, step and layer, not on the row's place."""

        def row(row_id: int) -> Tensor:
            seed = ((self.context.seed * 1_000_003 + row_id) * 100_003 + self.step) * 1_009 + layer
            return torch.randn(width, generator=torch.Generator().manual_seed(seed % 2**63))

        return torch.stack([row(row_id) for row_id in batch.row_id_B.tolist()]).to(batch.input_ids_BT.device)

    def distance(self, mlps: Mapping[int, Tensor], batch: TokenBatch) -> Tensor:
        """Mean over layers of the distance to noise."""
        mask_BT = token_mask(batch, self.config.tokens)
        rows = SharedRows(torch.arange(len(mask_BT), device=mask_BT.device))
        most = largest(int(mask_BT.sum(1).max()), mask_BT.device)
        parts = []
        for layer, hidden_BTD in mlps.items():
            x_BS = end_to_end(upcast(hidden_BTD), mask_BT, most)
            real_BS = end_to_end(torch.ones_like(hidden_BTD, dtype=x_BS.dtype), mask_BT, most)
            parts.append(noise_distance(rows.all(x_BS), rows.all(self.noise(batch, layer, x_BS.shape[1]) * real_BS)))
        return torch.stack(parts).mean()

    def forget(self, lm: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """(ascent, distance to noise), scalars."""
        n = self.context.n_blocks
        with mlp_outputs(lm) as mlps:
            out = forward(lm, batch, layers=range(n - 1))
        norm = _found(decoder_of(lm), NORMS, "a final norm")
        row_A, pos_A = answer_positions(batch.labels_BT)

        def lens(hidden_BTD: Tensor) -> Tensor:
            return token_nll(head(lm, norm(hidden_BTD[row_A, pos_A])), out.targets_A)

        through = [mean(checkpoint(lens, out.hidden[layer], use_reentrant=False)) for layer in range(n - 1)]
        own = mean(token_nll(out.logits_AV, out.targets_A))
        return ascent_loss(torch.stack([*through, own])), self.distance(mlps, batch)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (ascent), ``noise`` (distance to noise), ``retain``, all before weighting."""
        ascent, noise = self.forget(lm, batch["forget"])
        held = self.held(lm, batch, ascent, self.config.ascent_weight)
        return LossTerms(held.total + self.config.noise_weight * noise, {**held.terms, "noise": noise})
