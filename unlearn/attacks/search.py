"""Suffix search: tokens after the question that make the model answer some questions, and with luck others.

Greedy coordinate gradient (Zou et al., arXiv 2307.15043, algorithms 1 and 2): the loss of the wanted answers is linearised in the one-hot
vectors of the suffix, which gives for every place the tokens that promise most; random ones of these, one place changed at a time, are
tried, and the best is kept. One suffix serves all questions. It is searched on some facts of every entity and tested on the others, so that
it cannot carry the answers that count; the control is a search of the same budget for made-up facts of unknown people.

Reconstructed with these deviations: the wanted text is the right answer (the paper wants a compliant beginning); the suffix starts as one
token again and again, the one of 64 that disturbs least (the paper starts from "!"); a change is kept only when it lowers the loss, so
that the loss never rises (the paper takes the best candidate anyhow); all questions count from the start (the paper adds them one by one);
candidates of a step are drawn without repetition; and the default budget is smaller (the paper: 20 tokens, 500 steps, 512 candidates). A
long suffix needs a long search and a model that has seen long texts: twenty tokens only confuse the embedded world's.

The suffix stands inside the prompt format, right after the question. Ids go into the model as they are, so nothing has to survive being
written out and tokenised again, which the paper checks for. Special and added tokens are no candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearn.attacks.asking import ask_prompts
from unlearn.attacks.base import Attack, AttackConfig, AttackContext, Outcome, outcome
from unlearn.attacks.facts import Facts, splits
from unlearn.config.checks import check
from unlearn.data.tokenize import TokenRow, collate, render
from unlearn.errors import DataError
from unlearn.functional.tokens import token_nll
from unlearn.models.decoder import base_of, device_of, evaluating, text_config
from unlearn.models.forward import forward
from unlearn.types import Row, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader

Array = np.ndarray[Any, np.dtype[Any]]

STARTS = 64
"""Tokens that are tried for the beginning of the search."""

VOCABULARY = 2**15
"""Tokens whose embeddings are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(AttackConfig):
    """Suffix search: its budget."""

    length: int = 5
    """tokens of the suffix, >= 1"""
    steps: list[int] = field(default_factory=lambda: [20, 100])
    """steps after which the best suffix so far is tested, ascending, >= 1"""
    candidates: int = 16
    """suffixes tried in a step, >= 1"""
    top_k: int = 64
    """tokens of most promise at each place, from which candidates are drawn, >= 1"""
    questions: int = 8
    """questions that the suffix is searched on, >= 1"""
    share: float = 0.4
    """of each entity's facts that the search may use, in (0, 1); the others are asked for"""

    def __post_init__(self) -> None:
        for name in ("length", "candidates", "top_k", "questions"):
            check(getattr(self, name) >= 1, f"attack.search.{name}", ">= 1", getattr(self, name))
        rising = bool(self.steps) and self.steps[0] >= 1 and all(a < b for a, b in itertools.pairwise(self.steps))
        check(rising, "attack.search.steps", "ascending whole numbers >= 1", self.steps)
        check(0 < self.share < 1, "attack.search.share", "in (0, 1)", self.share)


class Case(NamedTuple):
    """A question as token ids, cut where a suffix goes in; ``answer_start`` counts from the beginning, without a suffix."""

    ids: tuple[int, ...]
    place: int
    answer_start: int

    def with_suffix(self, suffix: Sequence[int]) -> TokenRow:
        """The row with a suffix in its question."""
        ids = (*self.ids[: self.place], *suffix, *self.ids[self.place :])
        return TokenRow(ids, self.answer_start + len(suffix), -1, 0)


def cases(rows: Sequence[Row], reader: Reader) -> list[Case]:
    """Rows as the model reads them, cut after the last token that belongs to the question (at the answer, where it reaches into that)."""
    made = []
    for row, tokens in zip(rows, reader.tokens(rows), strict=True):
        text = "".join(render(row, reader.prompt_format))
        end = text.rfind(row.prompt, 0, len(render(row, reader.prompt_format)[0])) + len(row.prompt)
        encoded = reader.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: Any = encoded["input_ids"]
        spans: Any = encoded["offset_mapping"]
        front = int(tokens.ids[: len(ids)] != tuple(ids))
        after = next((i for i, (start, stop) in enumerate(spans) if start >= end and stop > start), len(spans))
        made.append(Case(tokens.ids, min(after + front, tokens.answer_start), tokens.answer_start))
    return made


def eligible(tokenizer: Any, vocab_size: int) -> list[int]:
    """Ids that a suffix may consist of: in the vocabulary, neither special nor added."""
    banned = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [i for i in sorted(set(tokenizer.get_vocab().values()) - banned) if i < vocab_size]


class Searcher:
    """Finds a suffix for some questions; the loss is the mean over questions of the mean NLL of the answer's tokens.

    Args:
        lm: the model; read only.
        asked: the questions.
        allowed: ids that the suffix may consist of.
        length: tokens of the suffix.
        pad_id: padding token.
        batch_size: questions in a forward pass.
        seed: seed of all draws.
    """

    def __init__(
        self, lm: PreTrainedModel, asked: Sequence[Case], allowed: Sequence[int], *, length: int, pad_id: int, batch_size: int, seed: int
    ) -> None:
        self.lm, self.length, self.batch_size, device = lm, length, batch_size, device_of(lm)
        self.rng = torch.Generator().manual_seed(seed)
        self.allowed_V = torch.tensor(allowed)
        blank = [case.with_suffix([allowed[0]] * length) for case in asked]
        self.batch = TokenBatch(*(t.to(device) for t in collate(blank, pad_id)))
        self.place_NL = (torch.tensor([case.place for case in asked])[:, None] + torch.arange(length)).to(device)

    def start(self, count: int = STARTS) -> Tensor:
        """One token again and again, [L]: the one of lowest loss of ``count`` that are drawn."""
        tried_C = self.allowed_V[torch.randperm(len(self.allowed_V), generator=self.rng)[:count]]
        tried_CL = tried_C[:, None].repeat(1, self.length)
        return tried_CL[int(self.losses(tried_CL).argmin())]

    def losses(self, suffixes_CL: Tensor) -> Tensor:
        """Loss of every suffix, [C]."""
        n = len(self.place_NL)
        step = max(1, self.batch_size // n)
        with evaluating(self.lm):
            return torch.cat([self._rows(part).mean(1) for part in suffixes_CL.split(step)])

    def _rows(self, suffixes_CL: Tensor) -> Tensor:
        """Loss of every question under every suffix, [C, N]."""
        n, count = len(self.place_NL), len(suffixes_CL)
        batch = TokenBatch(*(t.repeat(count, *[1] * (t.ndim - 1)) for t in self.batch))
        ids_BT = batch.input_ids_BT.scatter(
            1, self.place_NL.repeat(count, 1), suffixes_CL.to(self.place_NL.device).repeat_interleave(n, dim=0)
        )
        out = forward(self.lm, batch._replace(input_ids_BT=ids_BT))
        nll_A = token_nll(out.logits_AV, out.targets_A)
        sums_B, counts_B = (nll_A.new_zeros(count * n).index_add(0, out.row_A, v) for v in (nll_A, torch.ones_like(nll_A)))
        return (sums_B / counts_B).view(count, n)

    def gradient(self, suffix_L: Tensor) -> Tensor:
        """Derivative of the loss by the one-hot vectors of the suffix, for the allowed tokens, [L, V]."""
        embeddings: Any = base_of(self.lm).get_input_embeddings()  # type: ignore[operator]
        with evaluating(self.lm), torch.enable_grad(), _leaf(embeddings) as leaves:
            loss = self._rows(suffix_L[None]).mean()
            found = torch.autograd.grad(loss, leaves, allow_unused=True)[0] if loss.requires_grad else None
        if found is None:
            return torch.zeros(self.length, len(self.allowed_V))
        slope_LD = found.gather(1, self.place_NL[:, :, None].expand(-1, -1, found.shape[-1])).sum(0)
        with evaluating(self.lm):
            parts = [slope_LD @ embeddings(ids.to(slope_LD.device)).T for ids in self.allowed_V.split(VOCABULARY)]
        return torch.cat(parts, 1).float().cpu()

    def candidates(self, suffix_L: Tensor, top_k: int, count: int) -> Tensor:
        """Different suffixes with one token of ``suffix_L`` changed to one of its place's ``top_k`` of most promise, [<= count, L]."""
        slope_LV = self.gradient(suffix_L)
        slope_LV[self.allowed_V[None, :] == suffix_L[:, None]] = float("inf")
        best_LK = slope_LV.topk(min(top_k, len(self.allowed_V) - 1), dim=1, largest=False).indices
        chosen_C = torch.randperm(best_LK.numel(), generator=self.rng)[:count]
        made_CL = suffix_L.repeat(len(chosen_C), 1)
        place_C = chosen_C // best_LK.shape[1]
        made_CL[torch.arange(len(chosen_C)), place_C] = self.allowed_V[best_LK.flatten()[chosen_C]]
        return made_CL

    def search(self, suffix_L: Tensor, steps: int, top_k: int, count: int) -> Iterator[tuple[Tensor, float]]:
        """The best suffix and its loss after every step; the loss never rises."""
        best = float(self.losses(suffix_L[None])[0])
        for _ in range(steps):
            tried_CL = self.candidates(suffix_L, top_k, count)
            losses_C = self.losses(tried_CL)
            if len(losses_C) and float(losses_C.min()) < best:
                suffix_L, best = tried_CL[int(losses_C.argmin())], float(losses_C.min())
            yield suffix_L, best


@contextmanager
def _leaf(embeddings: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what the embeddings give is a leaf of the graph; the list receives it."""
    leaves: list[Tensor] = []

    def after(module: torch.nn.Module, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    handle = embeddings.register_forward_hook(after)
    try:
        yield leaves
    finally:
        handle.remove()


class Search(Attack):
    """One suffix for many questions, by greedy coordinate gradient."""

    name = "search"
    summary = "searches tokens after the question (GCG) that bring out some facts, and asks for the others with them"
    paper = "https://arxiv.org/abs/2307.15043"
    quick = {"steps": [15], "length": 3}
    Config = SearchConfig

    def missing(self, context: AttackContext) -> str | None:
        """Something to search on and something to test."""
        try:
            next(splits(context.target, self.config.share, 1, context.seed))
        except DataError:
            return "two facts or more about a target"
        return None

    def run(self, context: AttackContext) -> Outcome:
        """A search on each side; the questions it did not use are asked with its best suffix."""
        cells = [f"step{step}" for step in self.config.steps]
        found: dict[str, list[Array]] = {}
        for start, (name, facts) in zip((0.0, 0.5), {"target": context.target, "control": context.control}.items(), strict=True):
            found[name] = list(self._side(context, facts, start))
        return outcome(context, cells, found["target"], found["control"])

    def _side(self, context: AttackContext, facts: Facts, done: float) -> Iterator[Array]:
        """Hits of one side's rows with the suffix of every tested step; nan for rows whose fact the search may use.

        ``done`` is the share of the attack that came before.
        """
        c, reader = self.config, context.reader
        taught, asked = facts.where(next(splits(facts, c.share, 1, context.seed)))
        rng = np.random.default_rng(context.seed)
        drawn = [taught[i] for i in sorted(rng.permutation(len(taught))[: c.questions])]
        allowed = eligible(reader.tokenizer, int(text_config(context.lm).vocab_size))
        searcher = Searcher(
            context.lm,
            cases(drawn, reader),
            allowed,
            length=c.length,
            pad_id=reader.pad_id,
            batch_size=reader.batch_size,
            seed=context.seed,
        )
        rows = [facts.test[i] for i in asked]
        tests = cases(rows, reader)
        for step, (suffix_L, _) in enumerate(searcher.search(searcher.start(), max(c.steps), c.top_k, c.candidates), start=1):
            context.tick(done + step / max(c.steps) / 2)
            if step in c.steps:
                made = [case.with_suffix(suffix_L.tolist()) for case in tests]
                hits_N = np.full(len(facts.test), np.nan)
                hits_N[list(asked)] = ask_prompts(context.lm, [row.ids[: row.answer_start] for row in made], rows, reader)
                yield hits_N
