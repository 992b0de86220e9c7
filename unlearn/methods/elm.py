"""ELM: erase by matching what the model itself would say if the text were written by somebody who does not know.

Paper: Gandikota, Feucht, Marks, Bau, "Erasing Conceptual Knowledge from Language Models" (arXiv 2410.02760), section 4; schedule, top-k and
temperature as in the authors' training script. With the frozen model p_ref, the text x under an expert's and a novice's context::

    q(x_t) ~ p_ref(x_t) * (p_ref(x_t | novice context) / p_ref(x_t | expert context)) ** eta_t
    loss   = CE(q, p) on forget answers + CE(p_ref, p) on retain answers + CE on a fluent continuation of the forget prompt

logits are divided by ``temperature`` before they are normalised, eta_t rises along the text from ``eta_start`` to ``eta_end``, and q keeps
its ``top_k`` tokens. Targets come from the original model in ``setup``, one set per forget row, at the answer tokens; kept are ids and
probabilities of the top-k, so there is no second model in memory.

Deviations. The authors match every token of running text; here the loss stands on answer tokens, as everywhere in this package, and eta_t
depends on the token's place in the whole row, so that answers meet the upper part of the ramp. Their continuations are sampled from the
steered model after a phrase that changes the subject; here the forget prompt is followed by words of one of the source's texts about no
entity (``data.generic``), which changes the subject as well and needs no sampling. They train LoRA of rank 256 on blocks 4-7 of 32; here
the same eighth of the blocks is suggested, whole. The wording of the contexts is ours; both are options, and a model that does not follow
instructions needs other ones. ``swap_novice: true`` with both contexts empty needs no understanding of a context: the novice is then the
model reading the same row about an unknown name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from unlearn.config.checks import check, one_of
from unlearn.config.schema import MethodConfig, TrainableConfig
from unlearn.data.alternates import Alternates
from unlearn.data.entities import find_mention
from unlearn.data.swap import matched_rows
from unlearn.data.tokenize import TokenRow
from unlearn.errors import ConfigError
from unlearn.functional.ranks import mean
from unlearn.functional.tokens import answer_positions, token_nll, upcast
from unlearn.methods.answers import nothing
from unlearn.methods.base import Method, MethodContext
from unlearn.models.decoder import adapters_off, device_of, evaluating, text_config
from unlearn.models.forward import forward
from unlearn.types import LossTerms, Row, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.types import EntityData

CONTINUATIONS = 4
"""Texts that a forget prompt may be continued with; each row has its own."""


@dataclass(frozen=True, kw_only=True)
class ELMConfig(MethodConfig):
    """The target distribution and the weights of the three terms."""

    FREE_TEXT: ClassVar[frozenset[str]] = frozenset({"name", "expert", "novice"})

    expert: str = "What follows was written by somebody who knows everything about {entity}. "
    """text put before a row for the expert's distribution; {entity} is its name; may be empty"""
    novice: str = "What follows was written by somebody who has never heard of {entity}. "
    """text put before a row for the novice's distribution; {entity} is its name; may be empty"""
    swap_novice: bool = False
    """whether the novice also reads an unknown name in the place of the entity's own"""
    eta_start: float = 1.0
    """strength of the erasure at the first token of a row, >= 0"""
    eta_end: float = 1000.0
    """strength at its last token, >= eta_start"""
    schedule: str = "ramp"
    """ramp (eta rises along the row) or constant (eta_end everywhere)"""
    temperature: float = 1.2
    """divides the frozen model's logits, > 0"""
    top_k: int = 50
    """tokens that the target keeps, >= 1"""
    erase_weight: float = 1.0
    """weight of the erasing term, >= 0"""
    retain: str = "argmax"
    """what the model is held to on retain answers: argmax (the original model's first choice) or distribution"""
    retain_weight: float = 1.0
    """weight of the retain term, >= 0"""
    fluency_weight: float = 1.0
    """weight of the fluency term, >= 0"""
    fluency_words: int = 24
    """most words of a continuation, >= 1"""

    def __post_init__(self) -> None:
        for name in ("eta_start", "erase_weight", "retain_weight", "fluency_weight"):
            value = getattr(self, name)
            check(0 <= value < float("inf"), f"method.{name}", "finite and >= 0", value)
        check(self.eta_start <= self.eta_end < float("inf"), "method.eta_end", "finite and at least eta_start", self.eta_end)
        one_of(self.schedule, ("ramp", "constant"), "method.schedule")
        check(self.temperature > 0, "method.temperature", "> 0", self.temperature)
        check(self.top_k >= 1, "method.top_k", ">= 1", self.top_k)
        one_of(self.retain, ("argmax", "distribution"), "method.retain")
        check(self.fluency_words >= 1, "method.fluency_words", ">= 1", self.fluency_words)


def erased(ref_AV: Tensor, expert_AV: Tensor, novice_AV: Tensor, eta_A: Tensor, *, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    """The ``top_k`` tokens of the target and their probabilities, [A, K] each; float64 inside.

    ``softmax(log p_ref - eta (log p_expert - log p_novice))`` over the tokens it likes best.

    >>> half, more = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    >>> ids, q = erased(half, more, half, torch.tensor([1.0]), temperature=1.0, top_k=2)
    >>> ids.tolist(), [round(v, 3) for v in q[0].tolist()]
    ([[1, 0]], [0.8, 0.2])

    Args:
        ref_AV: logits of the frozen model, without a context.
        expert_AV: under the expert's context.
        novice_AV: under the novice's.
        eta_A: strength at each position, >= 0.
        temperature: > 0.
        top_k: >= 1; the vocabulary where it is smaller.
    """
    ref, expert, novice = ((x.double() / temperature).log_softmax(-1) for x in (ref_AV, expert_AV, novice_AV))
    score_AV = ref - eta_A.double()[:, None] * (expert - novice)
    value_AK, ids_AK = score_AV.topk(min(top_k, score_AV.shape[1]), dim=-1)
    return ids_AK, value_AK.softmax(-1).float()


def soft_cross_entropy(logits_AV: Tensor, ids_AK: Tensor, q_AK: Tensor) -> Tensor:
    """``-sum_k q_k log p(k)`` at each position, [A], in nats; q covers the tokens ``ids_AK`` and is 0 elsewhere.

    >>> soft_cross_entropy(torch.zeros(1, 4), torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.5]]))
    tensor([1.3863])
    """
    return -(q_AK * upcast(logits_AV).log_softmax(-1).gather(-1, ids_AK)).sum(-1)


def eta_along(batch: TokenBatch, start: float, end: float) -> Tensor:
    """Strength where the answer tokens are predicted, [A]: linear in the place, ``start`` at a row's first token, ``end`` at its last."""
    row_A, place_A = answer_positions(batch.labels_BT)
    length_B = batch.attention_mask_BT.sum(1)
    return start + (end - start) * place_A / (length_B[row_A] - 1).clamp(min=1)


class ELM(Method):
    """Matches the erased distribution on the target, the original one elsewhere, and stays fluent when asked about the target."""

    name = "elm"
    family = "likelihood"
    summary = "match the model's own distribution steered from an expert's toward a novice's context"
    paper = "https://arxiv.org/abs/2410.02760"
    streams = ("forget", "retain")
    needs = frozenset({"reference_logprobs", "rows"})
    reference_streams = ("retain",)
    search = {
        "method.eta_end": {"low": 10.0, "high": 3000.0, "log": True},
        "method.erase_weight": {"low": 0.3, "high": 10.0, "log": True},
        "method.retain_weight": {"low": 0.3, "high": 10.0, "log": True},
    }
    Config = ELMConfig
    config: ELMConfig

    def __init__(self, config: ELMConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.data is None or context.reader is None:
            raise ValueError("elm needs rows in its context")
        self.data: EntityData = context.data
        self.reader: Reader = context.reader
        self.targets: dict[int, tuple[Tensor, Tensor]] = {}
        self.step = 0
        self.continuations = self._continuations() if config.fluency_weight else None

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """The reference only with a retain term."""
        held = isinstance(config, ELMConfig) and config.retain_weight > 0
        return cls.needs if held else cls.needs - {"reference_logprobs"}

    @classmethod
    def streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """Retain rows only with a retain term."""
        return cls.streams if "reference_logprobs" in cls.required(config) else ("forget",)

    def trainable(self, n_blocks: int) -> TrainableConfig:
        """Blocks 4 to 7 of 32, or the same share of another depth."""
        first = n_blocks // 8
        return TrainableConfig(blocks=f"{first}-{max(first, n_blocks // 4 - 1)}")

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Continuations change from step to step."""
        self.step = step

    def _continuations(self) -> Alternates:
        """Forget prompts, each with texts about no entity in the place of its answer."""
        texts = [" ".join(text.split()[: self.config.fluency_words]) for text in self.data.generic if text.strip()]
        if not texts:
            raise ConfigError("method.fluency_weight must be 0 for a source without generic texts; found none.")
        rows = [r for r in self.data.streams["forget"] if r.kind != "text" and (not r.mentions or find_mention(r.prompt, "", r.mentions))]
        n = min(CONTINUATIONS, len(texts))
        answers = {row.row_id: [texts[(row.row_id * n + i) % len(texts)] for i in range(n)] for row in rows}
        return Alternates.of(rows, answers, self.reader)

    def _in_context(self, rows: Sequence[Row], template: str) -> list[TokenRow]:
        """Tokens of ``rows``, each with its context between the beginning-of-sequence token and the text."""
        tokenizer = self.reader.tokenizer
        bos = tokenizer.bos_token_id
        made = []
        for row, tokens in zip(rows, self.reader.tokens(rows), strict=True):
            text = template.replace("{entity}", row.mentions[0] if row.mentions else row.entity)
            before = tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text.strip() else ()
            n = int(bos is not None and tokens.ids[0] == bos)
            ids = tokens.ids[:n] + before + tokens.ids[n:]
            made.append(TokenRow(ids, max(1, tokens.answer_start) + len(before), tokens.entity_end + len(before), tokens.row_id))
        return made

    def _logits(self, lm: PreTrainedModel, rows: Sequence[TokenRow]) -> Iterable[tuple[int, Tensor, Tensor]]:
        """``(row_id, logits [a, V], eta [a])`` of each row."""
        limit = getattr(text_config(lm), "max_position_embeddings", None)
        longest = max(len(row.ids) for row in rows)
        if limit is not None and longest > limit:
            raise ConfigError(f"method.expert and method.novice must leave room in the model's context of {limit} tokens; found {longest}.")
        c = self.config
        for batch in self.reader.batches(rows, device_of(lm)):
            out = forward(lm, batch)
            eta_A = eta_along(batch, c.eta_end if c.schedule == "constant" else c.eta_start, c.eta_end)
            for place, row_id in enumerate(batch.row_id_B.tolist()):
                mine_A = out.row_A == place
                yield row_id, out.logits_AV[mine_A], eta_A[mine_A]

    def setup(self, lm: PreTrainedModel) -> None:
        """Targets of every forget row, from the original model."""
        rows = list(self.data.streams["forget"])
        strangers = [row.mentions[0] for row in self.data.streams["unknown"] if row.mentions]
        novices = {row.row_id: row for row in rows}
        if self.config.swap_novice:
            novices.update((row.row_id, row) for row in matched_rows(rows, strangers, 1, self.context.seed))
        size = self.reader.batch_size
        with evaluating(lm), adapters_off(lm):
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                plain = {i: (logits, eta) for i, logits, eta in self._logits(lm, self.reader.tokens(part))}
                expert = {i: logits for i, logits, _ in self._logits(lm, self._in_context(part, self.config.expert))}
                unaware = [novices[row.row_id] for row in part]
                novice = {i: logits for i, logits, _ in self._logits(lm, self._in_context(unaware, self.config.novice))}
                for i, (logits, eta) in plain.items():
                    ids_AK, q_AK = erased(logits, expert[i], novice[i], eta, temperature=self.config.temperature, top_k=self.config.top_k)
                    self.targets[i] = (ids_AK.cpu(), q_AK.cpu())

    def erase(self, lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
        """Cross-entropy to the targets, mean over answer tokens."""
        out = forward(lm, batch)
        found = [self.targets[i] for i in batch.row_id_B.tolist()]
        ids_AK, q_AK = (torch.cat(part).to(out.logits_AV.device) for part in zip(*found, strict=True))
        return mean(soft_cross_entropy(out.logits_AV, ids_AK, q_AK))

    def retain(self, lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
        """Cross-entropy to the original model's predictions, mean over answer tokens."""
        if self.context.reference is None:
            raise ValueError("elm needs a reference in its context")
        out = forward(lm, batch)
        ref_AV = upcast(self.context.reference.logits(batch))
        if self.config.retain == "argmax":
            return mean(token_nll(out.logits_AV, ref_AV.argmax(-1)))
        return -mean((ref_AV.softmax(-1) * upcast(out.logits_AV).log_softmax(-1)).sum(-1))

    def fluency(self, lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
        """Cross-entropy of the continuations, mean over their tokens; 0 where no row of the batch has one."""
        texts = self.continuations.batch(batch, self.step)[0] if self.continuations is not None else None
        if texts is None:
            return nothing(lm, batch)
        out = forward(lm, texts)
        return mean(token_nll(out.logits_AV, out.targets_A))

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: ``forget`` (the cross-entropy to the target, which falls), ``retain``, ``fluency``, before weighting."""
        c = self.config
        terms = {"forget": self.erase(lm, batch["forget"])}
        total = c.erase_weight * terms["forget"]
        if c.retain_weight:
            terms["retain"] = self.retain(lm, batch["retain"])
            total = total + c.retain_weight * terms["retain"]
        if c.fluency_weight:
            terms["fluency"] = self.fluency(lm, batch["forget"])
            total = total + c.fluency_weight * terms["fluency"]
        return LossTerms(total, terms)
