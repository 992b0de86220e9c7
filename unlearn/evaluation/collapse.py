"""Collapse: has the model lost more than the target?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unlearn.data.tokenize import batches
from unlearn.functional.divergence import kl_divergence
from unlearn.functional.text import distinct_n, normalise_answer, repetition
from unlearn.functional.tokens import token_nll
from unlearn.models.decoder import device_of
from unlearn.models.forward import forward, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.config.schema import EvaluationConfig
    from unlearn.data.reader import Reader
    from unlearn.data.tokenize import TokenRow
    from unlearn.models.reference import ReferenceStore

CONTINUATIONS = 32
"""Generic texts that are continued freely to look for repetition."""


def answer_entropy(texts: Sequence[str]) -> float:
    """Shannon entropy in bits of the distribution of normalised answers; 0 when every question gets the same one.

    >>> answer_entropy(["a", "b", "a", "b"]), answer_entropy(["no", "no"])
    (1.0, 0.0)
    """
    counts = Counter(normalise_answer(t) for t in texts)
    total = sum(counts.values())
    return abs(sum(-n / total * math.log2(n / total) for n in counts.values()))


@torch.no_grad()
def generic_text(
    lm: PreTrainedModel, tokens: Sequence[TokenRow], reader: Reader, reference: ReferenceStore | None, layer: int | None
) -> dict[str, float]:
    """Perplexity and KL to the original model on generic text, and the relative drift of the hidden norm at block ``layer``.

    Keys: ``generic/perplexity`` (exp of nats per token), ``generic/kl_to_base`` (nats per token, KL(original || model)),
    ``collapse/hidden_norm_drift`` (mean norm over original mean norm, minus 1). Without a reference only the first; without texts none.
    """
    nll = kl = norm = base_norm = 0.0
    count = 0
    device = device_of(lm)
    for _, cpu_batch in batches(tokens, reader.batch_size, reader.pad_id):
        batch = type(cpu_batch)(*(t.to(device) for t in cpu_batch))
        out = forward(lm, batch, layers=() if reference is None or layer is None else (layer,))
        nll += float(token_nll(out.logits_AV, out.targets_A).double().sum())
        count += len(out.targets_A)
        if reference is None or layer is None:
            continue
        kl += float(kl_divergence(reference.logits(batch), out.logits_AV).double().sum())
        mask = batch.attention_mask_BT.bool().clone()
        mask[:, 0] = False
        norm += float(out.hidden[layer][mask].float().norm(dim=-1).double().sum())
        base_norm += float(reference.hidden(batch, layer)[mask].float().norm(dim=-1).double().sum())
    if not count:
        return {}
    found = {"generic/perplexity": math.exp(min(700.0, nll / count))}
    if reference is None or layer is None:
        return found
    return found | {"generic/kl_to_base": kl / count, "collapse/hidden_norm_drift": norm / base_norm - 1.0}


def free_text(lm: PreTrainedModel, tokens: Sequence[TokenRow], reader: Reader) -> dict[str, float]:
    """``collapse/repetition`` and ``collapse/distinct_2`` of greedy continuations of the first third of generic texts, in [0, 1]."""
    prompts = [list(row.ids[: max(2, len(row.ids) // 3)]) for row in tokens[:CONTINUATIONS]]
    written = generate(lm, reader.tokenizer, prompts, max_new_tokens=32, stop_ids=(), batch_size=reader.batch_size)
    rates = [repetition(ids) for ids in written if ids]
    return {
        "collapse/repetition": sum(rates) / len(rates) if rates else 0.0,
        "collapse/distinct_2": distinct_n(written, 2),
    }


@dataclass(frozen=True)
class Verdict:
    """Whether the model has collapsed, and why, in words."""

    flag: bool
    reason: str


def verdict(results: Mapping[str, float], base: Mapping[str, float], config: EvaluationConfig) -> Verdict:
    """Compare a model with the original one; every limit that is passed gives one clause of the reason."""
    reasons = []
    if "generic/perplexity" in results:
        perplexity, before = results["generic/perplexity"], base["generic/perplexity"]
        if not perplexity <= config.collapse_perplexity * before:
            reasons.append(f"generic perplexity {perplexity:.3g} is {perplexity / before:.1f} times the original {before:.3g}")
    accuracy, had = results["retain/accuracy"], base["retain/accuracy"]
    if had and accuracy <= config.collapse_retain * had:
        reasons.append(f"retain accuracy fell from {had:.2f} to {accuracy:.2f}")
    if results["collapse/repetition"] > base["collapse/repetition"] + 0.3:
        reasons.append(f"repetition rose from {base['collapse/repetition']:.2f} to {results['collapse/repetition']:.2f}")
    if results["collapse/entropy"] < 0.5 * base["collapse/entropy"]:
        reasons.append(f"answer entropy fell from {base['collapse/entropy']:.1f} to {results['collapse/entropy']:.1f} bits")
    return Verdict(bool(reasons), "; ".join(reasons))
