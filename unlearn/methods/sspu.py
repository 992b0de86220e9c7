"""SSPU: push the target's activations into an irrelevant SAE subspace, with weight updates kept inside the relevant one.

Paper: Wang, Li, Wang, Hu & Zou, "Model Unlearning via Sparse Autoencoder Subspace Guided Projections" (arXiv 2505.24428, EMNLP 2025).

Reconstruction: its abstract gives three stages (choice of features, subspaces by QR, constrained optimisation); the formulas and all the
numbers here are put together from that and from RMU (arXiv 2403.03218), whose loss it changes, and every one is an option. As built:

1. Latents are ranked by mean activation on forget tokens minus that on retain tokens; the ``features`` highest are relevant, the
   ``features`` lowest irrelevant.
2. The QR decomposition of their decoder vectors (columns) gives orthonormal bases U_rel and U_irr of the residual stream.
3. Loss: ``|h_f - c|^2 + alpha |h_r - h_r^ref|^2 + subspace_weight * R``, squares averaged over tokens and coordinates as in RMU's code, and
   ``c = steering * U_irr U_irr^T v / |U_irr U_irr^T v|`` and v drawn once, uniform on [0, 1), from the run's seed.

R is ``sum_W |(I - U_rel U_rel^T) (W - W_0)|_F^2`` over the trained matrices that write into the residual stream (MLP output and attention
output projections), on their output side, the only side that has the residual stream's coordinates: what an update of such a matrix adds to
the stream then stays in span(U_rel). Other trained weights are not constrained. With LoRA the columns of B span the update's output, and
B starts at 0, so B takes the place of W - W_0.

As in RMU, the MLP output matrices of the hooked block and the two before it are trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check
from unlearn.config.schema import MethodConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import upcast
from unlearn.latents.features import FeatureStats, measure_features
from unlearn.methods.base import Method, MethodContext
from unlearn.models.capture import capture
from unlearn.models.decoder import base_of, device_of
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WRITERS = r"\.(down_proj|o_proj|c_proj|out_proj|dense_4h_to_h|fc2|fc_out)(\.base_layer|\.lora_B\.\w+)?\.weight$"
"""Names of the matrices whose output is added to the residual stream."""


@dataclass(frozen=True, kw_only=True)
class SSPUConfig(MethodConfig):
    """Subspaces and the weights of the loss."""

    features: int = 10
    """latents that span each subspace (K), >= 1"""
    steering: float = 6.5
    """length of the control vector (gamma), finite and > 0; of the order of the activations' own"""
    alpha: float = 1.0
    """weight of the retain term, finite and >= 0; RMU's published recipes run from 1 to 1200"""
    subspace_weight: float = 1.0
    """weight of the part of the updates outside the relevant subspace (lambda), finite and >= 0"""

    def __post_init__(self) -> None:
        check(self.features >= 1, "method.features", ">= 1", self.features)
        check(0 < self.steering < float("inf"), "method.steering", "finite and > 0", self.steering)
        for name in ("alpha", "subspace_weight"):
            check(0 <= getattr(self, name) < float("inf"), f"method.{name}", "finite and >= 0", getattr(self, name))


def ranked(forget: FeatureStats, retain: FeatureStats, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` most and the ``k`` least relevant latents, by difference of mean activations.

    >>> sums, zero = torch.tensor([3.0, 1.0, 2.0]), torch.zeros(3)
    >>> ranked(FeatureStats(1, zero, sums, zero), FeatureStats(1, zero, zero, zero), 1)
    (tensor([0]), tensor([1]))
    """
    order = (forget.mean_F - retain.mean_F).argsort(descending=True, stable=True)
    return order[:k], order.flip(0)[:k]


def basis(vectors_KD: Tensor) -> Tensor:
    """Orthonormal basis of the span of K vectors, [D, min(K, D)], by QR.

    >>> basis(torch.tensor([[0.0, 2.0]])).abs()
    tensor([[0.],
            [1.]])
    """
    q_DK: Tensor = torch.linalg.qr(vectors_KD.T).Q
    return q_DK


def outside(delta_DN: Tensor, basis_DK: Tensor) -> Tensor:
    """``|(I - U U^T) delta|_F^2``, a scalar >= 0.

    >>> outside(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [0.0]]))
    tensor(4.)
    """
    return (delta_DN - basis_DK @ (basis_DK.T @ delta_DN)).square().sum()


def control_vector(basis_DK: Tensor, steering: float, seed: int) -> Tensor:
    """A random vector of length ``steering`` in the span of ``basis_DK``, [D]."""
    drawn_D = torch.rand(len(basis_DK), generator=torch.Generator().manual_seed(seed)).to(basis_DK)
    inside_D = basis_DK @ (basis_DK.T @ drawn_D)
    return steering * inside_D / inside_D.norm()


def output_first(name: str, weight: Tensor, lm: PreTrainedModel) -> Tensor:
    """A writer's weight as [D, inputs], whichever way its module keeps it (GPT-2's Conv1D keeps inputs first)."""
    from transformers.pytorch_utils import Conv1D

    module = base_of(lm).get_submodule(name.removesuffix(".weight"))
    return weight.T if isinstance(module, Conv1D) else weight


class SSPU(Method):
    """Steers into the irrelevant subspace; updates stay in the relevant one."""

    name = "sspu"
    family = "sae"
    summary = "steer forget activations into an irrelevant SAE subspace, updates kept in the relevant one (reconstruction)"
    paper = "https://arxiv.org/abs/2505.24428"
    streams = ("forget", "retain")
    needs = frozenset({"sae", "rows", "reference_hidden"})
    reference_streams = ("retain",)
    sharded = False
    search = {
        "method.steering": {"low": 1.0, "high": 30.0, "log": True},
        "method.alpha": {"low": 0.1, "high": 100.0, "log": True},
        "method.subspace_weight": {"low": 0.1, "high": 10.0, "log": True},
    }
    Config = SSPUConfig
    config: SSPUConfig
    relevant_DK: Tensor
    control_D: Tensor

    def __init__(self, config: SSPUConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.sae is None or context.reader is None or context.data is None or context.reference is None or context.hook_layer is None:
            raise ValueError("sspu needs sae, rows, reference and hook_layer in its context")
        self.sae, self.reader, self.data, self.reference = context.sae, context.reader, context.data, context.reference
        self.layer = context.hook_layer
        if 2 * config.features > self.sae.d_sae:
            raise ConfigError(f"method.features must be <= {self.sae.d_sae // 2} (half of the SAE's latents); found {config.features}.")
        self.register_buffer("relevant_DK", torch.zeros(0, 0), persistent=False)
        self.register_buffer("control_D", torch.zeros(0), persistent=False)
        self.original: dict[str, Tensor] = {}

    def trainable(self, n_blocks: int) -> TrainableConfig | None:
        """MLP output matrices of the hooked block and the two before it."""
        return TrainableConfig(
            mode="modules", blocks=f"{max(0, self.layer - 2)}-{self.layer}", modules=[r"mlp\.(down_proj|c_proj)\.weight"]
        )

    def forget_layer(self) -> int | None:
        """The hooked block."""
        return self.layer

    def deepest_layer(self) -> int | None:
        """The hooked block."""
        return self.layer

    @torch.no_grad()
    def setup(self, lm: PreTrainedModel) -> None:
        """Rank the latents, build the subspaces and the control vector, and keep a copy of the constrained weights."""
        device, bos_id = device_of(lm), self.reader.tokenizer.bos_token_id
        forget, retain = (
            measure_features(lm, self.sae, self.reader.batches(self.data.streams[s], device), self.layer, bos_id)
            for s in ("forget", "retain")
        )
        relevant, irrelevant = ranked(forget, retain, self.config.features)
        self.relevant_DK = basis(self.sae.sae.W_dec[relevant])
        self.control_D = control_vector(basis(self.sae.sae.W_dec[irrelevant]), self.config.steering, self.context.seed)
        self.original = {name: upcast(weight).detach().clone() for name, weight in self._writers(lm)}

    @staticmethod
    def _writers(lm: PreTrainedModel) -> list[tuple[str, Tensor]]:
        """Trained matrices that write into the residual stream, output side first."""
        named = ((name, p) for name, p in base_of(lm).named_parameters() if p.requires_grad and re.search(WRITERS, name))
        return [(name, output_first(name, weight, lm)) for name, weight in named]

    def subspace(self, lm: PreTrainedModel) -> Tensor:
        """R: squared norm of the updates' part outside the relevant subspace."""
        parts = [
            outside(upcast(weight) - self.original[name].to(weight.device), self.relevant_DK.to(weight.device))
            for name, weight in self._writers(lm)
            if name in self.original
        ]
        return torch.stack(parts).sum() if parts else self.relevant_DK.new_zeros(())

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, ``retain``, ``subspace``, all before weighting."""
        c = self.config
        forget_ND, retain_ND, before_ND = (
            upcast(hidden_BTD)[_inner(batch[stream])]
            for stream, hidden_BTD in (
                ("forget", capture(lm, batch["forget"], self.layer)),
                ("retain", capture(lm, batch["retain"], self.layer)),
                ("retain", self.reference.hidden(batch["retain"], self.layer)),
            )
        )
        terms = {
            "forget": mean((forget_ND - self.control_D).square()),
            "retain": mean((retain_ND - before_ND).square()),
            "subspace": self.subspace(lm),
        }
        return LossTerms(terms["forget"] + c.alpha * terms["retain"] + c.subspace_weight * terms["subspace"], terms)


def _inner(batch: TokenBatch) -> Tensor:
    """Tokens after the first one of each row, [B, T]."""
    mask_BT = batch.attention_mask_BT.bool().clone()
    mask_BT[:, 0] = False
    return mask_BT
