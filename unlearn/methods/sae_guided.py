"""SAE-guided unlearning: the target's activation leaves the known entities and joins the unknown ones.

Paper: Yamashita et al., "Sparse-Autoencoder-Guided Internal Representation Unlearning for Large Language Models" (arXiv 2509.15631).
Its abstract fixes that the objective works in the latent space of a frozen SAE, away from known and toward unknown entities; its
body was not available when this was written, so every further choice is an option here. ``prototype`` is the closest reading
(attraction to the mean of the unknown entities, bounded repulsion from the mean of the known ones). ``distribution`` asks for what
the paper defines as forgetting, indistinguishability, by matching the distribution of unknown entities (MMD); pulling to a mean
collapses the targets onto that mean, where a classifier finds them. The sample that is matched is as many unknown names as there are
targets (``latents.matched`` times as many), in the targets' own sentences: n unknown names have a mean of their own, and n targets whose
mean is exactly that of all unknown names would be a giveaway too.

A latent that is off has no gradient, so an objective on activations cannot switch one on: ``space: preactivation`` is the default.

With an SAE that reads several blocks (``sae.route``), the target is what is routed to it, and ``retain_hidden`` the mean over its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import relu

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig
from unlearn.functional.distance import contrastive, push_pull, standardised_distance, triplet
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.erasure import relative_change
from unlearn.functional.mmd import mmd2
from unlearn.functional.ranks import SharedRows, mean
from unlearn.latents.banks import POSITIONS, activations_at, position_index
from unlearn.methods.base import Method, MethodContext, concatenate
from unlearn.models.capture import EMBEDDINGS
from unlearn.models.edit import edited
from unlearn.models.forward import Forward, forward
from unlearn.types import NO_ENTITY, LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.latents.banks import Banks

OBJECTIVES = ("prototype", "triplet", "contrastive", "distribution", "sample")
SPACES = ("preactivation", "activation", "decoded", "residual")
FLOOR = 1e-3


@dataclass(frozen=True, kw_only=True)
class SAEGuidedConfig(MethodConfig):
    """Free choices of the objective, and the retain term."""

    objective: str = "distribution"
    """prototype, triplet, contrastive, distribution or sample"""
    space: str = "preactivation"
    """preactivation, activation, decoded (activations through the decoder) or residual (no SAE: the control)"""
    position: str = "entity_end"
    """entity_end (last token of the name), answer_start (last prompt token) or both"""
    push: float = 0.5
    """weight of the bounded repulsion from known entities (lambda), >= 0"""
    outlier_pull: float = 0.3
    """weight of the pull on single targets that lie farther out than 95 % of unknown entities (objective distribution), >= 0"""
    temperature: float = 0.1
    """temperature of the contrastive objective (tau), > 0"""
    forget_weight: float = 10.0
    """weight of the forgetting term, >= 0"""
    retain_kl: float = 1.0
    """weight of KL(original || model) on the answers of retain, known and unknown rows, >= 0"""
    retain_hidden: float = 1.0
    """weight of the relative squared change of the hooked block's output (of every block that the SAE reads) on those rows, >= 0"""
    retain_noise: float = 0.0
    """Gaussian noise at the entity token of those rows, below the hook, up to this multiple of its standard deviation, >= 0"""

    def __post_init__(self) -> None:
        one_of(self.objective, OBJECTIVES, "method.objective")
        one_of(self.space, SPACES, "method.space")
        one_of(self.position, (*POSITIONS, "both"), "method.position")
        check(self.temperature > 0, "method.temperature", "> 0", self.temperature)
        for name in ("push", "outlier_pull", "forget_weight", "retain_kl", "retain_hidden", "retain_noise"):
            check(getattr(self, name) >= 0, f"method.{name}", ">= 0", getattr(self, name))


def distribution_loss(x_NS: Tensor, known_MS: Tensor, unknown_KS: Tensor, push: float) -> Tensor:
    """``MMD2(x, U) + push * relu(MMD2(K, U) - MMD2(x, K))``; inputs standardised. Zero when x is distributed as U."""
    loss = mmd2(x_NS, unknown_KS)
    if push:
        loss = loss + push * relu(mmd2(known_MS, unknown_KS) - mmd2(x_NS, known_MS))
    return loss


def extent(unknown_MS: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """(mu_U [S], q), q the ``level`` quantile of D(u, mu_U) over unknown entities, a scalar; inputs standardised."""
    centre_S = unknown_MS.mean(0)
    return centre_S, torch.quantile(standardised_distance(unknown_MS, centre_S, torch.ones_like(centre_S)), level)


def outlier_loss(x_NS: Tensor, centre_S: Tensor, reach: Tensor) -> Tensor:
    """``mean_x relu(D(x, mu_U) - q)``; inputs standardised, mu_U and q as ``extent`` gives them.

    A kernel hardly feels a single point that lies far from everything: one target of ten could stay where it was. Zero for those
    who lie where unknown entities lie.
    """
    return relu(standardised_distance(x_NS, centre_S, torch.ones_like(centre_S)) - reach).mean()


class SAEGuided(Method):
    """Forgetting in SAE latent space, with the original model's predictions and hidden states kept elsewhere."""

    name = "sae_guided"
    family = "sae"
    summary = "move the target's SAE latents away from known and onto unknown entities"
    paper = "https://arxiv.org/abs/2509.15631"
    streams: ClassVar[tuple[str, ...]] = ("forget", "retain", "known", "unknown")
    needs = frozenset({"sae", "banks", "reference_logprobs", "reference_hidden"})
    reference_streams: ClassVar[tuple[str, ...]] = ("retain", "known", "unknown")
    routed = True
    search = {
        "method.forget_weight": {"low": 1.0, "high": 30.0, "log": True},
        "method.push": {"low": 0.0, "high": 1.0},
        "method.position": {"choices": ["entity_end", "both"]},
    }
    Config = SAEGuidedConfig
    config: SAEGuidedConfig
    latents_S: Tensor

    def __init__(self, config: SAEGuidedConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.banks is None or context.sae is None or context.selection is None or context.hook_layer is None:
            raise ValueError("sae_guided needs banks, sae, selection and hook_layer in its context")
        self.sae = context.sae
        self.layer = context.hook_layer
        self.register_buffer("latents_S", context.selection.latents_S, persistent=False)
        self.positions = POSITIONS if config.position == "both" else (config.position,)
        self._standardise(context.banks)
        self.matched_ids = context.banks.matched_ids
        self.draws = torch.Generator().manual_seed(context.seed)

    @torch.no_grad()
    def _standardise(self, banks: Banks) -> None:
        """Bank features divided by their pooled standard deviation, one buffer per side and position."""
        for position in self.positions:
            known, unknown, matched = (self.features(bank[position]) for bank in (banks.known, banks.unknown, banks.matched))
            scale_S = torch.cat([known, unknown]).std(0).clamp(min=FLOOR)
            self.register_buffer(f"scale_{position}", scale_S, persistent=False)
            for name, value in (("known", known), ("unknown", unknown), ("matched", matched)):
                self.register_buffer(f"{name}_{position}", value / scale_S, persistent=False)
            for name, value in zip(("centre", "reach"), extent(unknown / scale_S), strict=True):
                self.register_buffer(f"{name}_{position}", value, persistent=False)

    def get_extra_state(self) -> Tensor:
        """State of the generator that draws from the banks, for checkpoints."""
        return self.draws.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on drawing where the checkpoint stopped."""
        self.draws.set_state(state.cpu())

    def features(self, hidden_ND: Tensor) -> Tensor:
        """The coordinates in which the objective works, fp32: [N, S], or [N, D] for ``decoded`` and ``residual``."""
        hidden_ND = hidden_ND.float()
        if self.config.space == "residual":
            return hidden_ND
        if self.config.space == "preactivation":
            return self.sae.preactivations(hidden_ND, self.latents_S)
        activations_NF = self.sae.encode(hidden_ND)
        if self.config.space == "decoded":
            return self.sae.decode(activations_NF, hidden_ND)
        return activations_NF[:, self.latents_S]

    def forget_layer(self) -> int | None:
        """The hooked block."""
        return self.layer

    def deepest_layer(self) -> int | None:
        """The hooked block without the KL term, else the logits."""
        return None if self.config.retain_kl else self.layer

    def forget(self, lm: PreTrainedModel, batch: TokenBatch, position: str) -> Tensor:
        """The objective at one position, a scalar; 0 where no row of the batch names its entity."""
        return self.distance(activations_at(lm, batch, self.sae, position), batch, position)

    def distance(self, hidden_ND: Tensor, batch: TokenBatch, position: str) -> Tensor:
        """The objective of what the SAE reads at ``position`` of the rows that have it, [N, D]; a scalar."""
        scale, known, unknown, matched = (getattr(self, f"{name}_{position}") for name in ("scale", "known", "unknown", "matched"))
        place_N = (position_index(batch, position) > NO_ENTITY).nonzero()[:, 0]
        rows = SharedRows(place_N)
        x_NS = rows.all(self.features(hidden_ND) / scale)
        if not len(x_NS):
            return x_NS.sum()
        row_id_N = rows.all(batch.row_id_B[place_N])
        centre, reach, one = getattr(self, f"centre_{position}"), getattr(self, f"reach_{position}"), torch.ones_like(scale)
        objectives: dict[str, Callable[[], Tensor]] = {
            "prototype": lambda: push_pull(x_NS, centre, known.mean(0), one, self.config.push),
            "triplet": lambda: triplet(x_NS, centre, known.mean(0), one),
            "contrastive": lambda: contrastive(x_NS, self._draw(unknown, len(x_NS)), self._draw(known, len(x_NS)), self.config.temperature),
            "distribution": lambda: (
                distribution_loss(x_NS, self._draw(known, len(x_NS)), matched, self.config.push)
                + self.config.outlier_pull * outlier_loss(x_NS, centre, reach)
            ),
            "sample": lambda: self._sample_loss(x_NS, row_id_N, matched),
        }
        return objectives[self.config.objective]().mean()

    def _draw(self, bank_NS: Tensor, n: int) -> Tensor:
        """``n`` rows of a bank, without replacement while it lasts."""
        index = torch.cat([torch.randperm(len(bank_NS), generator=self.draws) for _ in range(-(-n // len(bank_NS)))])[:n]
        return bank_NS[index.to(bank_NS.device)]

    def _sample_loss(self, x_NS: Tensor, row_id_N: Tensor, matched_KS: Tensor) -> Tensor:
        """Distance of each row to one of the unknown names in the same sentence, drawn anew; rows without one are left out."""
        same_NK = row_id_N[:, None].cpu() == self.matched_ids
        has = same_NK.any(1)
        partner = torch.multinomial(same_NK[has].float(), 1, generator=self.draws)[:, 0].to(x_NS.device)
        return standardised_distance(x_NS[has.to(x_NS.device)], matched_KS[partner], torch.ones_like(matched_KS[0]))

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Blocks whose outputs are kept where they were on the rows that are kept."""
        return self.sae.layers

    def retain(self, lm: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """(KL on answers, relative squared change of the kept layers' outputs on tokens after the first), scalars."""
        with self._noise(lm, batch):
            return self.changed(forward(lm, batch, layers=self.kept_layers), batch)

    def changed(self, out: Forward, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """The same, of a pass that was made."""
        reference = self.context.reference
        if reference is None:
            raise ValueError("sae_guided needs a reference in its context")
        divergence = mean(kl_divergence(reference.logits(batch), out.logits_AV))
        mask_BT = batch.attention_mask_BT.bool().clone()
        mask_BT[:, 0] = False
        changes = [relative_change(out.hidden[n][mask_BT], reference.hidden(batch, n)[mask_BT]) for n in self.kept_layers]
        return divergence, torch.stack(changes).mean()

    def _noise(self, lm: PreTrainedModel, batch: TokenBatch) -> AbstractContextManager[None]:
        """Shake the entity token below the hook, so that a neighbourhood of the listed names has to stay, not those names alone."""
        if not self.config.retain_noise:
            return nullcontext()
        named_N = (batch.entity_end_B > NO_ENTITY).nonzero()[:, 0]
        place_N, rows = batch.entity_end_B[named_N], SharedRows(named_N)
        layer = int(torch.randint(EMBEDDINGS + 1, max(1, self.layer), (), generator=self.draws))
        strength = self.config.retain_noise * float(torch.rand((), generator=self.draws))

        def shake(hidden_BTD: Tensor) -> Tensor:
            at_ND = hidden_BTD[named_N, place_N]
            all_MD = rows.all(at_ND.detach())
            drawn_ND = torch.randn(all_MD.shape, generator=self.draws).to(at_ND)[rows.own_N]
            return hidden_BTD.index_put((named_N, place_N), at_ND + strength * all_MD.std(0) * drawn_ND)

        return edited(lm, layer, shake)

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget``, ``retain_kl``, ``retain_hidden``, all before weighting."""
        c = self.config
        terms = {"forget": torch.stack([self.forget(lm, batch["forget"], p) for p in self.positions]).mean()}
        total = c.forget_weight * terms["forget"]
        if c.retain_kl or c.retain_hidden:
            kept = concatenate([batch[stream] for stream in self.reference_streams])
            terms["retain_kl"], terms["retain_hidden"] = self.retain(lm, kept)
            total = total + c.retain_kl * terms["retain_kl"] + c.retain_hidden * terms["retain_hidden"]
        return LossTerms(total, terms)
