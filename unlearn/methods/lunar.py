"""LUNAR: forget activations are redirected to where prompts lie that the model declines to answer, by solving for one matrix.

Paper: Shen et al., "LUNAR: LLM Unlearning via Neural Activation Redirection" (arXiv 2502.07218), section 3; details from the authors' code.

    r = mean h_original(reference prompts, last token) - mean h_original(forget prompts, last token)
    L = mean_t |h(x_forget, t) - (h_original(x_forget, t) + c r)|^2 / D + w * mean_t |h(x_retain, t) - h_original(x_retain, t)|^2 / D

h is the output of one block, and only the down-projection of that block's MLP is trained. The authors regress the MLP's output on its
input; with nothing else trained in the model, the input of the matrix and the residual stream beside it stay as they were, so that
the regression is the loss above (and where a norm follows the MLP, as in Gemma 2, the loss above is still right). The
authors use AdamW at a learning rate of 0.01, decaying, for 20 passes: raise ``optim.lr`` and ``optim.steps`` accordingly.

``reference`` says which prompts stand for not knowing: ``refusal`` (prompts that the model refuses; the authors take harmful requests, here
it is the questions about unknown anchors, whose answer is a refusal), or ``unverified`` (invented things; here the target's own
questions with unknown names in place of its own, so that r holds nothing but the name). ``prompts`` replaces both by texts of your own.

Deviations. The authors' loss averages over forget and retain tokens alike, so that their numbers decide about the weights; here
each half has its own mean and ``retain_weight``. The first token is left out: it is the same in every text, and would be
asked to move and to stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig, TrainableConfig
from unlearn.data.swap import matched_rows
from unlearn.errors import DataError
from unlearn.methods.base import Method, MethodContext
from unlearn.methods.rmu import DOWN_PROJECTION, block_number, masked_mse
from unlearn.models.capture import capture
from unlearn.models.decoder import adapters_off, device_of, evaluating
from unlearn.types import LossTerms, Row, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

REFERENCES = ("refusal", "unverified")
TOKENS = ("prompt", "last", "all")
NAME = "{name}"


@dataclass(frozen=True, kw_only=True)
class LunarConfig(MethodConfig):
    """Where to, how far, and which prompts show the way."""

    layer: int | None = None
    """block (0-based) whose down-projection is trained; null for the block that the SAE reads (the authors: 22 of 32)"""
    reference: str = "refusal"
    """refusal (questions about unknown anchors) or unverified (the target's questions about unknown names)"""
    prompts: list[str] = field(default_factory=list)
    """reference questions in place of ``reference``; ``{name}`` in one stands for an unknown name; empty for none"""
    n_prompts: int = 128
    """most reference prompts, evenly spread over what there is, >= 1"""
    coefficient: float = 2.0
    """how many times the direction is added (c), > 0"""
    retain_weight: float = 1.0
    """weight of the mean squared change of the retain activations (w), >= 0"""
    tokens: str = "prompt"
    """prompt (its tokens after the first), last (its last token) or all (answer tokens too), in both streams"""

    def __post_init__(self) -> None:
        check(self.layer is None or self.layer >= 0, "method.layer", ">= 0, or null", self.layer)
        one_of(self.reference, REFERENCES, "method.reference")
        check(all(text.strip() for text in self.prompts), "method.prompts", "texts, none of them empty", self.prompts)
        check(self.n_prompts >= 1, "method.n_prompts", ">= 1", self.n_prompts)
        check(self.coefficient > 0, "method.coefficient", "> 0", self.coefficient)
        check(self.retain_weight >= 0, "method.retain_weight", ">= 0", self.retain_weight)
        one_of(self.tokens, TOKENS, "method.tokens")


def redirection(reference_ND: Tensor, forget_MD: Tensor) -> Tensor:
    """Mean of the reference activations minus mean of the forget ones: ``r``, [D], fp32 or wider as given.

    >>> redirection(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([1., 2.])
    """
    return reference_ND.mean(0) - forget_MD.mean(0)


def prompt_mask(batch: TokenBatch, tokens: str) -> Tensor:
    """Which tokens count, bool [B, T]; see ``LunarConfig.tokens``."""
    place_T = torch.arange(batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device)
    start_B1 = batch.answer_start_B[:, None]
    if tokens == "last":
        return place_T == start_B1 - 1
    end_BT = batch.attention_mask_BT.bool() if tokens == "all" else place_T < start_B1
    return end_BT & (place_T > 0)


def _questions(rows: Sequence[Row]) -> list[Row]:
    """The questions among ``rows``, or all of them where there is none."""
    return [row for row in rows if row.kind == "qa"] or list(rows)


class Lunar(Method):
    """Regression of one matrix on redirected activations."""

    name = "lunar"
    family = "representation"
    summary = "redirect the target's activations to those of questions the model declines, by training one matrix"
    paper = "https://arxiv.org/abs/2502.07218"
    streams = ("forget", "retain")
    needs = frozenset({"reference_hidden", "rows"})
    reference_streams = ("forget", "retain")
    search = {
        "optim.lr": {"low": 1.0, "high": 40.0, "log": True},
        "method.coefficient": {"low": 0.5, "high": 8.0, "log": True},
        "method.retain_weight": {"low": 0.1, "high": 10.0, "log": True},
        "method.tokens": {"choices": ["prompt", "last", "all"]},
    }
    Config = LunarConfig
    config: LunarConfig
    shift_D: Tensor

    def __init__(self, config: LunarConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.layer = block_number(config.layer, context.hook_layer, context.n_blocks)

    @classmethod
    def reference_layers(cls, config: MethodConfig, hook_layer: int, n_blocks: int) -> tuple[int, ...]:
        """The redirected block."""
        return (block_number(config.layer, hook_layer, n_blocks),)  # type: ignore[attr-defined]

    def trainable(self, n_blocks: int) -> TrainableConfig:
        """The down-projection of the redirected block."""
        return TrainableConfig(mode="modules", blocks=str(self.layer), modules=[DOWN_PROJECTION])

    def forget_layer(self) -> int:
        """The redirected block."""
        return self.layer

    def deepest_layer(self) -> int:
        """The redirected block: no loss term needs logits."""
        return self.layer

    def reference_rows(self) -> list[Row]:
        """The prompts that stand for not knowing, at most ``n_prompts``.

        Raises:
            DataError: there are none, or names are asked for and there are none.
        """
        data, c = self.context.data, self.config
        if data is None:
            raise ValueError("lunar needs rows in its context")
        strangers = [row.mentions[0] for row in data.streams["unknown"] if row.mentions]
        if c.prompts:
            return self._own_prompts(list(dict.fromkeys(strangers)), data.refusals[0] if data.refusals else "unknown")
        if c.reference == "refusal":
            rows = _questions(data.streams["unknown"])
        else:
            rows = matched_rows(_questions(data.streams["forget"]), strangers, 1, self.context.seed)
        if not rows:
            raise DataError("The unknown stream must hold rows for method.reference = refusal; found none.")
        n = min(len(rows), c.n_prompts)
        return [rows[i * len(rows) // n] for i in range(n)]

    def _own_prompts(self, names: Sequence[str], answer: str) -> list[Row]:
        """``prompts`` as questions; those with a gap are filled with one unknown name after the other."""
        texts = self.config.prompts
        gaps = [text for text in texts if NAME in text]
        if gaps and not names:
            raise DataError(f"The unknown stream must hold names for {NAME} in method.prompts; found none.")
        filled = [text for text in texts if NAME not in text]
        if gaps:
            room = max(len(gaps), self.config.n_prompts - len(filled))
            filled += [gaps[i % len(gaps)].replace(NAME, names[i // len(gaps)]) for i in range(min(room, len(gaps) * len(names)))]
        return [Row(row_id=-1 - i, entity="", prompt=text, answer=answer) for i, text in enumerate(filled[: max(1, self.config.n_prompts)])]

    def setup(self, lm: PreTrainedModel) -> None:
        """Measure the direction on the original model."""
        if self.context.data is None:
            raise ValueError("lunar needs rows in its context")
        reference_ND = self._last(lm, self.reference_rows())
        forget_MD = self._last(lm, _questions(self.context.data.streams["forget"]))
        shift_D = self.config.coefficient * redirection(reference_ND, forget_MD)
        self.register_buffer("shift_D", shift_D.float().to(device_of(lm)), persistent=False)

    def _last(self, lm: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
        """Original activations at the last prompt token, [N, D] in float64."""
        if self.context.reader is None:
            raise ValueError("lunar needs rows in its context")
        with evaluating(lm), adapters_off(lm):
            batches = self.context.reader.batches(rows, device_of(lm))
            return torch.cat([capture(lm, batch, self.layer, batch.answer_start_B - 1).double() for batch in batches])

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (squared distance to the redirected activations), ``retain`` (squared change), before weighting."""
        c, reference = self.config, self.context.reference
        if reference is None:
            raise ValueError("lunar needs a reference in its context")
        rows, kept = batch["forget"], batch["retain"]
        target_BTD = reference.hidden(rows, self.layer) + self.shift_D
        forget = masked_mse(capture(lm, rows, self.layer), target_BTD, prompt_mask(rows, c.tokens))
        retain = masked_mse(capture(lm, kept, self.layer), reference.hidden(kept, self.layer), prompt_mask(kept, c.tokens))
        return LossTerms(forget + c.retain_weight * retain, {"forget": forget, "retain": retain})
