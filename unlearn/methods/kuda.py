"""KUDA: find the feed-forward layers that hold the knowledge, and turn their representations away where retained knowledge does not look.

Paper: Fang, Zhang, Chen, Liu, Zhou, Liu, Gao, "KUDA: Knowledge Unlearning by Deviating Representation for Large Language Models"
(arXiv 2602.19275). Its abstract fixes three parts: causal tracing locates the layers, the objective makes their representations deviate
from where they were, a relaxed null-space projection of the gradient spares the representations of retained knowledge. The body was not
available when this was written. What follows is a reconstruction; every number in the defaults is ours (weight and relaxation are those
at which the embedded world's targets are mostly forgotten in 60 steps while the rest stays):

- tracing (``unlearn.methods.tracing``): the window whose clean MLP outputs bring back most of the answers' probability when the entity's
  tokens are noised is trained. Which tokens are restored, and the width of the window, are guesses;
- forget loss: ``mean (cos(h, h_ref) + 1) / 2`` over the window's blocks and the tokens of forget rows but the first: what is left when the
  cosine distance, halved, is taken from 1. The paper's "inverse-forgetting temperature" and its exact form are not known, and left out. A
  cosine has no slope at h = h_ref, so h is first shifted by ``kick`` times the length of h_ref along a fixed random direction;
- projection: of the gradient of every trained matrix on the span of those eigenvectors of the uncentred covariance of its inputs on retain
  rows whose eigenvalue is at most ``relaxation`` times the largest: 0 is the null space itself. ``exact`` also takes out of the weights
  what AdamW's scaling of single gradients (and its decay) put outside that span; the paper, as far as it is known, projects gradients only;
- retain loss: cross-entropy on retain answers, projected as the rest is;
- the paper samples forget and retain rows at a random ratio; here a step has the rows that ``data.batch`` says.

Trained are the weight matrices of the window's MLPs (``model.trainable`` can narrow them, never widen them); biases stay, since a bias
acts on every input. The window is known after ``setup``; the other MLPs are frozen there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn.config.checks import check
from unlearn.config.schema import TrainableConfig
from unlearn.errors import ConfigError
from unlearn.functional.ranks import mean
from unlearn.methods.base import MethodContext
from unlearn.methods.retain import RetainConfig, RetainMethod
from unlearn.methods.tracing import hooked, mlp_of, spread, trace
from unlearn.models.capture import capture, capture_layers
from unlearn.models.decoder import blocks_of, device_of, evaluating
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.types import EntityData


@dataclass(frozen=True, kw_only=True)
class KUDAConfig(RetainConfig):
    """Tracing, objective and projection."""

    window: int = 3
    """neighbouring blocks whose feed-forward layers are traced and trained together, >= 1; the model's depth where that is less"""
    first_layer: int | None = None
    """first block of the window, >= 0; null lets causal tracing choose"""
    trace_rows: int = 64
    """most forget rows that are traced, >= 1"""
    noise: float = 3.0
    """noise on the entity's tokens in tracing, in standard deviations of their embeddings, finite and > 0"""
    draws: int = 3
    """draws of that noise for each row, >= 1"""
    forget_weight: float = 100.0
    """weight of the forget loss, which is at most 1 and starts almost flat, finite and >= 0"""
    kick: float = 0.01
    """length of the first shift away from h_ref, as a share of its own, in (0, 1)"""
    relaxation: float = 0.01
    """directions of retained inputs whose eigenvalue is at most this share of the largest may be used, in [0, 1]; 1 projects nothing"""
    null_rows: int = 512
    """most retain rows from which the projection is computed, >= 1"""
    exact: bool = False
    """whether the weights themselves are kept in the span, not their gradients alone"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "trace_rows", "draws", "null_rows"):
            check(getattr(self, name) >= 1, f"method.{name}", ">= 1", getattr(self, name))
        check(self.first_layer is None or self.first_layer >= 0, "method.first_layer", ">= 0, or null", self.first_layer)
        check(0 < self.noise < float("inf"), "method.noise", "finite and > 0", self.noise)
        check(0 <= self.forget_weight < float("inf"), "method.forget_weight", "finite and >= 0", self.forget_weight)
        check(0 < self.kick < 1, "method.kick", "in (0, 1)", self.kick)
        check(0 <= self.relaxation <= 1, "method.relaxation", "in [0, 1]", self.relaxation)


def deviation_loss(hidden_ND: Tensor, ref_ND: Tensor, shift_D: Tensor, kick: float) -> Tensor:
    """``mean (cos(h + kick |h_ref| u, h_ref) + 1) / 2``, in [0, 1]: 1 where nothing moved, 0 where h points the other way; float32 inside.

    >>> one, up = torch.tensor([[2.0, 0.0]]), torch.tensor([0.0, 1.0])
    >>> [round(deviation_loss(h, one, up, 0.0).item(), 3) for h in (one, torch.tensor([[0.0, 3.0]]), -one)]
    [1.0, 0.5, 0.0]

    Args:
        hidden_ND: representations, [N, D].
        ref_ND: those of the original model.
        shift_D: unit vector u.
        kick: >= 0.
    """
    ref_ND = ref_ND.float()
    moved_ND = hidden_ND.float() + kick * ref_ND.norm(dim=-1, keepdim=True) * shift_D
    return mean((nn.functional.cosine_similarity(moved_ND, ref_ND, dim=-1) + 1) / 2)


def relaxed_null_space(covariance_II: Tensor, relaxation: float) -> Tensor:
    """Projection [I, I] on the eigenvectors whose eigenvalue is at most ``relaxation`` times the largest; symmetric, float64.

    >>> relaxed_null_space(torch.diag(torch.tensor([4.0, 0.1, 0.0])), 0.1).diagonal().tolist()
    [0.0, 1.0, 1.0]
    """
    value_I, vector_II = torch.linalg.eigh(covariance_II.double())
    quiet = vector_II[:, value_I <= max(relaxation, 1e-12) * value_I.max()]
    return quiet @ quiet.T


class KUDA(RetainMethod):
    """Turns the feed-forward layers' representations of the target away, with gradients that retained inputs hardly feel."""

    name = "kuda"
    family = "representation"
    summary = "turn representations away in traced feed-forward layers, gradients projected off retained inputs (reconstruction)"
    paper = "https://arxiv.org/abs/2602.19275"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs", "rows"})
    reference_streams = ("retain",)
    sharded = False
    search = {
        "method.relaxation": {"low": 0.001, "high": 1.0, "log": True},
        "method.forget_weight": {"low": 3.0, "high": 300.0, "log": True},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = KUDAConfig
    config: KUDAConfig

    def __init__(self, config: KUDAConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.data is None or context.reader is None:
            raise ValueError("kuda needs rows in its context")
        self.data: EntityData = context.data
        self.reader: Reader = context.reader
        self.width = min(config.window, context.n_blocks)
        if config.first_layer is not None and config.first_layer + self.width > context.n_blocks:
            highest = context.n_blocks - self.width
            raise ConfigError(
                f"method.first_layer must be at most {highest} for a window of {self.width} blocks; found {config.first_layer}."
            )
        self.blocks: tuple[int, ...] = ()
        self.recovered: tuple[float, ...] = ()
        self.projections: dict[int, Tensor] = {}
        self.linear: list[tuple[nn.Module, nn.Parameter]] = []
        self.origin: list[Tensor] = []
        self.reference_hidden: dict[int, Tensor] = {}
        self.shift_LD = torch.empty(0)

    def trainable(self, n_blocks: int) -> TrainableConfig:
        """The MLPs of every block; ``setup`` narrows them to the window."""
        return TrainableConfig(mode="modules", blocks="all", modules=[r"\.mlp\."])

    def setup(self, lm: PreTrainedModel) -> None:
        """Trace, choose the window, freeze the rest, and measure the retained inputs and the target's representations."""
        if any("lora_" in name for name, p in lm.named_parameters() if p.requires_grad):
            raise ConfigError("model.trainable.mode must not be lora with method kuda, which projects the gradients of whole matrices.")
        with evaluating(lm):
            first = self.config.first_layer
            if first is None:
                self.recovered = self._trace(lm)
                first = max(range(len(self.recovered)), key=self.recovered.__getitem__)
            self.blocks = tuple(range(first, first + self.width))
            self._select(lm)
            self._measure_retained(lm)
            self._measure_target(lm)

    def _select(self, lm: PreTrainedModel) -> None:
        """Leave the window's MLP matrices trainable, and nothing else."""
        inside = [(m, getattr(m, "weight", None)) for n in self.blocks for m in mlp_of(blocks_of(lm)[n]).modules()]
        self.linear = [(m, w) for m, w in inside if isinstance(w, nn.Parameter) and w.ndim == 2 and w.requires_grad]
        if not self.linear:
            raise ConfigError(
                f"model.trainable must leave MLP weights of blocks {self.blocks[0]}-{self.blocks[-1]} to method kuda; found none."
            )
        kept = {id(weight) for _, weight in self.linear}
        for p in lm.parameters():
            p.requires_grad_(id(p) in kept)
        self.origin = [weight.detach().clone() for _, weight in self.linear] if self.config.exact else []

    def _trace(self, lm: PreTrainedModel) -> tuple[float, ...]:
        """Probability of the answer that each window's clean MLP outputs bring back, first window first."""
        named = [row for row in self.data.streams["forget"] if row.mentions]
        if not named:
            raise ConfigError("method.first_layer must be given where no forget row names its entity.")
        rows, c = spread(named, self.config.trace_rows), self.config
        return trace(lm, rows, self.reader, width=self.width, noise=c.noise, draws=c.draws, seed=self.context.seed)

    def _measure_retained(self, lm: PreTrainedModel) -> None:
        """The projection of each trained matrix, from its inputs on retain rows."""
        sums: dict[int, Tensor] = {}
        mask_BT = torch.empty(0)

        def add(n: int, args: Any, output: Any) -> None:
            seen_NI = args[0][mask_BT].double()
            sums[n] = sums.get(n, 0) + seen_NI.T @ seen_NI

        with hooked({n: module for n, (module, _) in enumerate(self.linear)}, add, before=True):
            for batch in self.reader.batches(spread(self.data.streams["retain"], self.config.null_rows), device_of(lm)):
                mask_BT = batch.attention_mask_BT.bool()
                capture(lm, batch, self.blocks[-1])
        self.projections = {n: relaxed_null_space(c, self.config.relaxation).float() for n, c in sums.items()}

    def _measure_target(self, lm: PreTrainedModel) -> None:
        """Outputs of the window's blocks on forget rows, kept in memory, [L, T, D] for each row; and the direction of the first shift."""
        for batch in self.reader.batches(self.data.streams["forget"], device_of(lm)):
            hidden_LBTD = torch.stack([*capture_layers(lm, batch, self.blocks).values()]).cpu()
            for place, row_id in enumerate(batch.row_id_B.tolist()):
                self.reference_hidden[row_id] = hidden_LBTD[:, place, : int(batch.attention_mask_BT[place].sum())].clone()
        size = hidden_LBTD.shape[-1]
        drawn_LD = torch.randn(len(self.blocks), size, generator=torch.Generator().manual_seed(self.context.seed))
        self.shift_LD = drawn_LD / drawn_LD.norm(dim=-1, keepdim=True)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (in [0, 1]) and ``retain``, before weighting."""
        rows = batch["forget"]
        mask_BT = rows.attention_mask_BT.bool().clone()
        mask_BT[:, 0] = False
        hidden = capture_layers(lm, rows, self.blocks)
        ref_LND = torch.cat([self.reference_hidden[i][:, 1:] for i in rows.row_id_B.tolist()], dim=1).to(mask_BT.device)
        shift_LD = self.shift_LD.to(mask_BT.device)
        kick = self.config.kick
        terms = [deviation_loss(hidden[n][mask_BT], ref_LND[i], shift_LD[i], kick) for i, n in enumerate(self.blocks)]
        return self.held(lm, batch, torch.stack(terms).mean(), self.config.forget_weight)

    def _project(self, n: int, change: Tensor) -> Tensor:
        """The part of a change of trained matrix ``n`` that retained inputs hardly feel."""
        from transformers.pytorch_utils import Conv1D

        p_II = self.projections[n] = self.projections[n].to(change.device)
        wide = change.float()
        return (p_II @ wide if isinstance(self.linear[n][0], Conv1D) else wide @ p_II).to(change.dtype)

    @torch.no_grad()
    def adjust_gradients(self, lm: PreTrainedModel) -> None:
        """Project the gradient of every trained matrix."""
        for n, (_, weight) in enumerate(self.linear):
            if weight.grad is not None:
                weight.grad.copy_(self._project(n, weight.grad))

    @torch.no_grad()
    def _pull_back(self) -> None:
        """With ``exact``: project the whole change of every trained matrix."""
        for n, origin in enumerate(self.origin):
            weight = self.linear[n][1]
            start = origin.to(weight.device)
            weight.copy_(start + self._project(n, weight - start))

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Bring the weights back into the span."""
        self._pull_back()

    def finish(self, lm: PreTrainedModel) -> None:
        """Bring the weights back into the span after the last step."""
        self._pull_back()
