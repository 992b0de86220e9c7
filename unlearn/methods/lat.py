"""Targeted latent adversarial training around another method: unlearn while an adversary in the residual stream brings the answers back.

Paper: Sheshadri, Ewart, Guo, Lynch, Wu, Hebbar, Sleight, Cooper Stickland, Perez, Hadfield-Menell, Casper, "Latent Adversarial Training
Improves Robustness to Persistent Harmful Behaviors in LLMs" (arXiv 2407.15549), sections 3 and 4.3 (unlearning); details of the attack as
in the authors' notebooks. For every batch:

- inner loop: ``attack_steps`` steps of Adam on a perturbation delta of the output of block ``layer`` on the forget rows. It minimises the
  negative log-likelihood of the original answers, so it undoes the forgetting; after each step every token's delta is projected onto the
  ball ``||delta||_2 <= eps``. It starts at zero, and each row has its own. Weights get no gradient from it.
- outer step: the loss of ``method.inner``, with delta added wherever a forget row runs through the model. Rows of other streams are left
  alone; a forget prompt with another answer (a refusal) gets the part of delta that stands on its prompt.

Deviations: the authors perturb the output of the block's MLP, which adds the same vector to the residual stream; they use AdamW, whose
decay of a perturbation has no purpose; they attack prompt tokens where a prompt is marked, answer tokens otherwise, here ``tokens``
says which. A row without a token of the chosen kind is attacked at every token. The first token, an attention sink in most models, is
never touched. Their presets are eps 1.5 at layer 12 of 32 with blocks 13-15 trained (Who is Harry Potter) and eps 2 at layer 7 (WMDP);
eps is in units of the residual stream, so it has to be chosen for the model: where tokens have a norm of 50, as at the hook of the embedded
world, 1.5 is hardly felt and 20 is.

An inner method whose forgetting term reads a block below ``layer`` never meets the perturbation, and is refused. One that reads
``layer`` itself meets it with nothing in between: delta then shifts what the loss sees and no weight can learn to resist it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from unlearn.config.checks import check, one_of
from unlearn.errors import ConfigError
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import token_nll
from unlearn.methods.base import MethodContext
from unlearn.methods.wrapper import Wrapper, WrapperConfig
from unlearn.models.capture import EMBEDDINGS
from unlearn.models.decoder import decoder_of, hidden_size
from unlearn.models.edit import edited
from unlearn.models.forward import forward
from unlearn.types import LossTerms, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

TOKENS = ("prompt", "answer", "entity", "all")


@dataclass(frozen=True, kw_only=True)
class LATConfig(WrapperConfig):
    """The adversary."""

    layer: int | None = None
    """block whose output is perturbed, from -1 (the embeddings) on; null takes the hooked one"""
    eps: float = 1.5
    """largest L2 norm of the perturbation of a token, in units of the residual stream, finite and > 0"""
    attack_steps: int = 16
    """steps of the adversary for each batch, >= 1"""
    attack_lr: float = 5e-2
    """step size of the adversary (Adam), finite and > 0"""
    tokens: str = "prompt"
    """which tokens are perturbed: prompt, answer, entity (the last token of the name) or all"""

    def __post_init__(self) -> None:
        check(self.layer is None or self.layer >= EMBEDDINGS, "method.layer", ">= -1, or null", self.layer)
        check(0 < self.eps < float("inf"), "method.eps", "finite and > 0", self.eps)
        check(self.attack_steps >= 1, "method.attack_steps", ">= 1", self.attack_steps)
        check(0 < self.attack_lr < float("inf"), "method.attack_lr", "finite and > 0", self.attack_lr)
        one_of(self.tokens, TOKENS, "method.tokens")


def project(delta_BTD: Tensor, eps: float) -> Tensor:
    """``delta`` with every token's vector shortened to length ``eps`` where it is longer.

    >>> project(torch.tensor([[[3.0, 4.0], [0.3, 0.4]]]), 1.0)
    tensor([[[0.6000, 0.8000],
             [0.3000, 0.4000]]])
    """
    return delta_BTD / (delta_BTD.norm(dim=-1, keepdim=True) / eps).clamp(min=1)


def attacked_tokens(batch: TokenBatch, tokens: str) -> Tensor:
    """True where the adversary may act [B, T]: ``tokens`` of ``TOKENS``, all of a row that has none of them; never the first token."""
    place_T = torch.arange(batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device)
    real_BT = batch.attention_mask_BT.bool() & (place_T > 0)
    chosen_BT = {
        "prompt": place_T < batch.answer_start_B[:, None],
        "answer": place_T >= batch.answer_start_B[:, None],
        "entity": place_T == batch.entity_end_B[:, None],
        "all": real_BT,
    }[tokens] & real_BT
    return torch.where(chosen_BT.any(1, keepdim=True), chosen_BT, real_BT)


def matching_rows(ids_NT: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Which row of ``batch`` each row of ``ids_NT`` is, and up to which token they agree.

    A row is found whole, or by its prompt where that names an entity (the longest prompt, where several fit).

    Args:
        ids_NT: input of some forward pass, padded on the right.
        batch: rows to look for.

    Returns:
        ``(index_N, agree_N)``: place in ``batch``, and number of tokens from the start that are the same; 0 for a row that is not there.
    """
    width = min(ids_NT.shape[1], batch.input_ids_BT.shape[1])
    place_T = torch.arange(width, device=ids_NT.device)
    same_NBT = ids_NT[:, None, :width] == batch.input_ids_BT[None, :, :width]

    def starts_with(length_B: Tensor) -> Tensor:
        return (same_NBT | (place_T >= length_B[:, None])).all(-1) & (length_B <= width)

    length_B = batch.attention_mask_BT.sum(1)
    named_B = (batch.entity_end_B >= 0) & (batch.entity_end_B < batch.answer_start_B)
    prompt_NB = torch.where(starts_with(batch.answer_start_B) & named_B, batch.answer_start_B, 0)
    agree_NB = torch.where(starts_with(length_B), length_B, prompt_NB)
    agree_N, index_N = agree_NB.max(1)
    return index_N, agree_N


@contextmanager
def perturbed(lm: nn.Module, layer: int, batch: TokenBatch, delta_BTD: Tensor) -> Iterator[None]:
    """Inside the context ``delta`` is added to the output of block ``layer`` wherever a row of ``batch`` runs through the model."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        ids_NT = kwargs.get("input_ids", args[0] if args else None)
        found.clear()
        if ids_NT is not None:
            found["rows"] = matching_rows(ids_NT, batch)

    def add(hidden_NTD: Tensor) -> Tensor:
        if "rows" not in found:
            return hidden_NTD
        index_N, agree_N = found["rows"]
        width = min(hidden_NTD.shape[1], delta_BTD.shape[1])
        inside_NT = torch.arange(width, device=hidden_NTD.device) < agree_N[:, None]
        shift_NTD = (delta_BTD[index_N, :width] * inside_NT[..., None]).to(hidden_NTD.dtype)
        return hidden_NTD + torch.nn.functional.pad(shift_NTD, (0, 0, 0, hidden_NTD.shape[1] - width))

    handle = decoder_of(lm).register_forward_pre_hook(look, with_kwargs=True)
    try:
        with edited(lm, layer, add):
            yield
    finally:
        handle.remove()


class LAT(Wrapper):
    """The inner method's loss, under the perturbation that best brings the original answers back."""

    name = "lat"
    family = "wrapper"
    summary = "run another method against an adversary that perturbs the residual stream to bring the answers back"
    paper = "https://arxiv.org/abs/2407.15549"
    streams = ("forget",)
    wraps = True
    search = {
        "method.inner.name": {"choices": ["grad_diff", "npo"]},
        "method.eps": {"low": 0.3, "high": 6.0, "log": True},
        "method.attack_steps": {"choices": [4, 8, 16]},
    }
    Config = LATConfig
    config: LATConfig

    def __init__(self, config: LATConfig, context: MethodContext) -> None:
        """Check that the perturbation can reach the inner method's forgetting term.

        Raises:
            ConfigError: the layer is not one of the model's, or is above what the inner method reads.
        """
        super().__init__(config, context)
        layer = context.hook_layer if config.layer is None else config.layer
        if layer is None or layer >= context.n_blocks:
            raise ConfigError(f"method.layer must be a block of the model, -1 to {context.n_blocks - 1}; found {layer}.")
        self.layer = layer
        reached = [n for n in (self.inner.forget_layer(), self.inner.deepest_layer()) if n is not None]
        if reached and layer > min(reached):
            raise ConfigError(
                f"method.layer must be at most {min(reached)}, the last block that the forgetting term of '{config.inner.name}' reads; "
                f"found {layer}."
            )

    def attack(self, lm: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """The perturbation [B, T, D] of a batch, fp32, and the mean negative log-likelihood of its answers before the last step.

        The adversary sums over answer tokens, so what is found for a row does not depend on the rows beside it.
        """
        allowed_BT1 = attacked_tokens(batch, self.config.tokens)[..., None]
        delta = torch.zeros(*batch.input_ids_BT.shape, hidden_size(lm), device=batch.input_ids_BT.device, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=self.config.attack_lr)
        with torch.enable_grad():
            for _ in range(self.config.attack_steps):
                with edited(lm, self.layer, lambda hidden: hidden + (delta * allowed_BT1).to(hidden.dtype)):
                    out = forward(lm, batch)
                nll_A = token_nll(out.logits_AV, out.targets_A)
                (delta.grad,) = torch.autograd.grad(nll_A.sum(), [delta])
                optimizer.step()
                with torch.no_grad():
                    delta.copy_(project(delta, self.config.eps))
        return (delta * allowed_BT1).detach(), mean(nll_A.detach())

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms of the inner method under the attack, and ``attacked_nll``: how unlikely the original answers are under it."""
        delta_BTD, nll = self.attack(lm, batch["forget"])
        with perturbed(lm, self.layer, batch["forget"], delta_BTD):
            out = self.inner.loss(lm, batch)
        return LossTerms(out.total, {**out.terms, "attacked_nll": nll})
